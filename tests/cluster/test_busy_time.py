"""How long workers had work, against a loop over every moment."""

from hypothesis import given
from hypothesis import strategies as st

from evoray.cluster.busy import BusyTime

WORKERS = range(3)


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "forget", "take"]), st.integers(0, 2), st.integers(0, 5))))
def test_every_moment_with_a_call_counts_once(events):
    now = 0
    busy = BusyTime(lambda: float(now))
    calls, moments = dict.fromkeys(WORKERS, 0), 0
    for event, worker, pause in events:
        if event == "begin":
            busy.begin(worker)
            calls[worker] += 1
        elif event == "end" and calls[worker]:
            busy.end(worker)
            calls[worker] -= 1
        elif event == "forget":
            busy.forget(worker)
            calls[worker] = 0
        if event == "take":
            assert sum(busy.take()) == moments
            moments = 0
        for _ in range(pause):
            now += 1
            moments += sum(count > 0 for count in calls.values())


def test_workers_stand_in_their_order_and_stay_when_they_rest():
    now = 0
    busy = BusyTime(lambda: float(now))
    for worker in (2, 0):
        busy.begin(worker)
    now = 3
    busy.end(2)
    now = 5
    busy.end(0)
    assert busy.take() == (5.0, 3.0)
    busy.begin(2)
    now = 6
    busy.end(2)
    assert busy.take() == (0.0, 1.0)
