"""What the demo's agents read: a scene that all of them know, their private notes, and the lines they say."""

from __future__ import annotations

from dataclasses import dataclass

N_ROUNDS = 3

SCENE = """\
Saltmere is a small harbour town with one crane, two bakeries and a long stone quay. On the last Saturday of
September its people want to hold a night market there for the first time: forty stalls between the old ice
house and the lighthouse steps, open from dusk until eleven, when the ferry brings the last visitors home. The
quay has mains power on its northern half only. High water is at twenty past nine, and at spring tides the
lowest paving stones get wet. The council has lent eight hundred pounds, which must come back by Christmas.
Eight people have agreed to plan it. They sit around the long table in the net loft, the kettle is on, and
they speak in turn, three times round. Everyone hears everything; what is in a person's notebook stays there.

"""


@dataclass(frozen=True, slots=True)
class Speaker:
    """One agent: who they are, what only they know, and what they say in each round."""

    name: str
    notebook: str
    lines: tuple[str, str, str]


SPEAKERS = (
    Speaker(
        "Ines",
        "I am Ines, the harbour master. I chair, I keep it short, and I will not have a stall on the slipway. The "
        "lifeboat crew told me they train that evening; I would like them to move it without making a fuss.",
        (
            "Welcome, all. The slipway stays clear for the lifeboat, whatever else we decide. Who needs what from me?",
            "Then the stalls stand in two rows on the north quay, and Yusuf decides at noon whether the lower row stays.",
            "Agreed, then: dusk to eleven, two rows, slipway clear. I shall put it in writing tonight. Thank you, all.",
        ),
    ),
    Speaker(
        "Bram",
        "I am Bram, the electrician. The north supply gives me a hundred amps and not one more. My nephew has a "
        "quiet generator that he owes me for, but I would rather keep that favour for the winter.",
        (
            "I can feed thirty stalls from the north supply if nobody brings a fryer. Every fryer costs me three stalls.",
            "Two fryers, at the ends, on their own circuit. For the rest, warm bulbs on one line; I have three hundred.",
            "The bulbs go up on Thursday. I test at full load on Friday evening, so bring whatever you mean to plug in.",
        ),
    ),
    Speaker(
        "Odile",
        "I am Odile, the cook from the Blue Door. I promised my sister a stall next to mine before I asked anybody. "
        "If there is only one fryer it has to be mine, because the whole menu hangs on the fritters.",
        (
            "People come hungry at dusk. I want fritters, mussels, and one good soup, and I want tables to eat them at.",
            "I take one fryer and share it with my sister's stall. The soup can stay hot on gas, so Bram may breathe.",
            "Mussels from Tomas, bread from both bakeries so that nobody sulks. We serve the first bowl at seven.",
        ),
    ),
    Speaker(
        "Tomas",
        "I am Tomas, I fish, as my father did. The mussel beds reopen on the Wednesday before, if the sample comes "
        "back clean; I am nearly sure that it will. I owe the ice house for August.",
        (
            "I can land sixty kilos of mussels on the Saturday morning, but I need the ice house open from six.",
            "If the water comes over the lower stones, my boat can lie alongside and sell straight from the deck.",
            "Sixty kilos, then, and mackerel if they run. The boat will be dressed with lights if Bram can spare a line.",
        ),
    ),
    Speaker(
        "Wren",
        "I am Wren, I play the accordion and lead the shanty choir. Two of my basses are not speaking to each other. "
        "I would love to end with everyone singing the ferry out, but I want it to look like an accident.",
        (
            "Music wants a corner out of the wind. The lighthouse steps would do, and they seat a hundred for nothing.",
            "Half an hour at eight, half an hour at ten, no amplifier. Between the sets the children may have the steps.",
            "We shall be on the steps at eight and at ten. And if anyone feels like singing at eleven, I will not object.",
        ),
    ),
    Speaker(
        "Petra",
        "I am Petra, the librarian. Last year at the fair a boy was lost for twenty minutes and I have not slept well "
        "on fair days since. I have already sewn forty paper-lantern kits, hoping nobody would say no.",
        (
            "Children will be up late. I would like a lantern table near the light, and a place where the lost are found.",
            "Then lanterns on the steps between the sets, and a walk along the quay at nine, before the tide is highest.",
            "Every child gets a lantern with the stall number of the library on it. That is where the lost are found.",
        ),
    ),
    Speaker(
        "Yusuf",
        "I am Yusuf, I keep the tide tables and the weather log. The barometer has been slow to settle this month. I "
        "dislike promising things about the sky, and I am usually right when I finally do.",
        (
            "It is a spring tide. With a south-westerly the lower stones will be wet from nine until a quarter to ten.",
            "I shall watch the wind from Friday and tell Ines by noon. A chalk line will show where the water may reach.",
            "Today the glass is rising. If it still rises on Friday, you will have stars. The chalk line I draw anyway.",
        ),
    ),
    Speaker(
        "Maeve",
        "I am Maeve, the treasurer. Thirty stalls at twenty-five pounds nearly pay the council back at once. I have "
        "put by ninety pounds for rain, in a tin that nobody at this table knows about.",
        (
            "We have eight hundred pounds and it is not ours. Tell me what a stall should cost and what you must buy.",
            "Twenty-five pounds a stall, and five back to whoever leaves the place as clean as they found it.",
            "With thirty stalls let, the loan goes back in October. I have a little set aside, should it rain.",
        ),
    ),
)


def shared_text(round_number: int) -> str:
    """Return what everybody has heard when a round begins: the scene and every line of the rounds before.

    Parameters
    ----------
    round_number : int
        From 1 to ``N_ROUNDS``.

    Examples
    --------
    >>> shared_text(1) == SCENE
    True
    >>> shared_text(3).startswith(shared_text(2))
    True
    """
    heard = [_spoken(speaker, earlier) for earlier in range(1, round_number) for speaker in SPEAKERS]
    return SCENE + "".join(heard)


def private_text(speaker: Speaker, round_number: int) -> str:
    """Return what only this speaker reads in a round: their notebook, then the line that they are about to say.

    Examples
    --------
    >>> private_text(SPEAKERS[0], 1).splitlines()[-1][:19]
    'Ines: Welcome, all.'
    """
    return f"\n{speaker.name}'s notebook: {speaker.notebook}\n{_spoken(speaker, round_number)}"


def _spoken(speaker: Speaker, round_number: int) -> str:
    return f"{speaker.name}: {speaker.lines[round_number - 1]}\n"
