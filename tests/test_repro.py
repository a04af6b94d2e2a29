"""utils.repro: the one stopwatch."""

from utils import repro


def test_functions_take_turns_and_the_first_call_of_a_turn_does_not_count(monkeypatch):
    clock, calls = [0], []

    def method(name, first, later):
        def call():
            clock[0] += later if calls[-1:] == [name] else first
            calls.append(name)

        return call

    monkeypatch.setattr(repro.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(repro, "TURN_SECONDS", 4)
    # The warm-up ends with "long", so each turn of "short" begins cold.
    seconds = repro.time_in_turn({"short": method("short", 2, 1), "long": method("long", 5, 9)}, rounds=2)
    assert seconds == {"short": [1, 1], "long": [5, 5]}
    assert calls == ["short", "long"] + (["short"] * 3 + ["long"]) * 2
