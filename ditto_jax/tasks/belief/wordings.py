"""The wordings of rule feedback for the theory-of-mind tasks: at least six for every kind of mistake.

Fields: {who} the person or "all of them", {away} who missed a step, {mover}, {speaker}, {asked} ("Ann thinks Bob
thinks"), {object}, {thing} what belongs into the answer tags. No wording has a field for a place or a letter, so none
can give the answer away. Words are few and plain on purpose: a tiny policy must read them.
"""

from __future__ import annotations

WORDINGS: dict[str, tuple[str, ...]] = {
    # The draft counts a move that not everyone in the chain saw.
    "missed_move": (
        "{away} was away when {mover} moved it.",
        "{away} did not see the move by {mover}.",
        "when {mover} moved it, {away} was away.",
        "{mover} moved it, but {away} was not there.",
        "{away} was not there for the move by {mover}.",
        "{away} did not see {mover} move it.",
        "the move by {mover} was not seen by {away}.",
    ),
    "missed_sight": (
        "{away} was away when it was shown again.",
        "{away} was not there when it was shown again.",
        "when it was shown again, {away} was away.",
        "{away} did not see where it was later.",
        "it was shown again, but {away} was not there.",
        "what was shown later was not seen by {away}.",
    ),
    "asked": (
        "it asks where {asked} it is.",
        "it asks where {asked} it is, not where it is now.",
        "the question is where {asked} it is.",
        "say where {asked} it is.",
        "look for where {asked} it is.",
        "think of where {asked} it is, not of the last move.",
    ),
    "last_seen_move": (
        "{who} last saw the move by {mover}.",
        "the last move seen by {who} was by {mover}.",
        "go back to the move by {mover}, seen by {who}.",
        "the move by {mover} was seen by {who}, no later one was.",
        "later moves than that by {mover} were not seen by {who}.",
        "look at the move by {mover}: {who} saw it last.",
    ),
    "last_seen_start": (
        "no move was seen by {who}.",
        "not one move was seen by {who}.",
        "look at the start: no move was seen by {who}.",
        "go back to the start, seen by {who}.",
        "only the start was seen by {who}.",
        "{who} saw the start, but no move after it.",
    ),
    # The draft stops before something that the whole chain saw.
    "stopped_early": (
        "{who} saw the later move by {mover}.",
        "there is a later move, by {mover}, seen by {who}.",
        "go on: {mover} moved it later, seen by {who}.",
        "{mover} moved it after that, and {who} saw it.",
        "the move by {mover} was later, and {who} saw it.",
        "look later: the move by {mover} was seen by {who}.",
    ),
    "came_back": (
        "{away} came back after the move by {mover} and saw it.",
        "{away} was back later and saw it.",
        "after the move by {mover}, {away} came back and saw it.",
        "{away} did not see the move by {mover}, but came back and saw it.",
        "think of when {away} came back: {away} saw it.",
        "when {away} came back, {away} saw it.",
    ),
    "saw_again": (
        "it was shown again later, seen by {who}.",
        "{who} saw it again later.",
        "look later: {who} saw it again.",
        "there was a later time when {who} saw it.",
        "go on: it was shown again, and {who} saw it.",
        "when it was shown again, {who} saw it.",
    ),
    "elsewhere": (
        "the {object} was never there.",
        "no move put the {object} there.",
        "look only at moves of the {object}.",
        "think only of the {object} and who moved it.",
        "the {object} did not go there.",
        "go over it again: the {object} was never put there.",
    ),
    # The draft names the room instead of what the object is in.
    "too_wide": (
        "that is a room, say what the {object} is in there.",
        "not the room: say what the {object} is in.",
        "it asks what the {object} is in, not for the room.",
        "say more than the room.",
        "the room is not enough, say what the {object} is in.",
        "look for what the {object} is in, not for the room.",
    ),
    # Order 0.
    "moved_last": (
        "the last move was by {mover}.",
        "{mover} moved it last.",
        "look at the last move, by {mover}.",
        "it asks where it is now, after the move by {mover}.",
        "no one moved it after {mover}.",
        "go on to the move by {mover}, the last one.",
    ),
    "never_moved": (
        "no one moved it.",
        "it was never moved.",
        "it asks where it is now, and no one moved it.",
        "look at the start: there was no move after it.",
        "there was no move at all.",
        "think again: it was not moved.",
    ),
    "at_the_start": (
        "it asks for the start, not for later.",
        "look at the start, before the move by {mover}.",
        "think of the start, before {mover} moved it.",
        "go back to the start: {mover} moved it later.",
        "it asks where it was, not where it is now.",
        "the question is where it was before {mover} moved it.",
    ),
    # Stories in which characters say where the object is.
    "trusts": (
        "{listener} left before {speaker}, and so trusts what {speaker} said.",
        "{speaker} was there longer, so {listener} trusts {speaker}.",
        "{listener} trusts {speaker}, who left later.",
        "think of what {speaker} said: {listener} trusts it.",
        "{listener} believes what {speaker} said, for {speaker} left later.",
        "look at what {speaker} said, for {listener} left before {speaker}.",
    ),
    "trusts_unseen": (
        "{listener} was not there, and so trusts what {speaker} said.",
        "{speaker} was there and {listener} was not, so {listener} trusts {speaker}.",
        "{listener} trusts {speaker}, who was there.",
        "think of what {speaker} said: {listener} trusts it.",
        "{listener} believes what {speaker} said, for only {speaker} was there.",
        "look at what {speaker} said, for {listener} was not there.",
    ),
    "taken_in": (
        "{speaker} thinks {listener} believes what {speaker} said.",
        "think of what {speaker} said: {speaker} thinks {listener} believes it.",
        "look at what {speaker} said, and wants {listener} to believe.",
        "{speaker} said something, and thinks {listener} believes it.",
        "what {speaker} said is what {speaker} thinks {listener} believes.",
        "{listener} heard {speaker}, so {speaker} thinks {listener} believes it.",
    ),
    "doubts": (
        "{listener} left after {speaker}, and so does not trust what {speaker} said.",
        "{listener} was there longer, and does not trust {speaker}.",
        "{listener} does not trust {speaker}, who left before.",
        "think again: {listener} does not believe what {speaker} said.",
        "{speaker} left before {listener}, so {listener} does not believe it.",
        "what {speaker} said is not believed by {listener}, who left later.",
    ),
    "only_words": (
        "what was said does not count for this question.",
        "that was only said, look at the moves.",
        "look at moves, not at what was said.",
        "no move put it there, it was only said.",
        "think of who saw which move, not of what was said.",
        "what {speaker} said does not count here.",
    ),
    # Nothing to judge.
    "no_answer": (
        "write one {thing} inside the answer tags.",
        "the answer tags must hold one {thing}.",
        "end with one {thing} inside the answer tags.",
        "put only one {thing} inside the answer tags.",
        "there must be one {thing}, and no more, inside the answer tags.",
        "say one {thing} only, inside the answer tags.",
    ),
}
