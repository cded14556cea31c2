"""Pictures of a store; matplotlib is imported when one is drawn."""
