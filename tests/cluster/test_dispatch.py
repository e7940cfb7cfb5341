"""Whatever order results, deaths and returns come in: every candidate has its own loss, and only killers are set aside.

`Cluster` plays the carrier and the workers. hypothesis decides what happens next; when it has had its say, everything
that is left goes by itself.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.cluster.dispatch import Dispatcher, Item

LIMIT = 20_000


def loss(candidate: int, batch: int, blocks: int) -> np.ndarray:
    return np.random.default_rng([candidate, batch]).random(blocks)


def result(item: Item, blocks: int) -> np.ndarray:
    return np.array([loss(candidate, item.batch, blocks) for candidate in item.candidates])


class Cluster:
    """Workers that hold calls in order and work at the first; a call with a poisonous candidate kills its worker.

    Args:
        candidates, blocks: of the job.
        poison: candidates that kill.
        choose: from (how many choices) to the index of one.
    """

    def __init__(
        self,
        candidates: int,
        blocks: list[int],
        *,
        workers: int,
        choose: Callable[[int], int],
        poison: frozenset[int] = frozenset(),
        depth: int = 2,
        pieces_for: int | None = None,
    ) -> None:
        self.candidates, self.blocks, self.poison, self.choose = candidates, blocks, poison, choose
        self.order = np.random.default_rng(candidates).permutation(candidates).tolist()
        self.dispatcher = Dispatcher(candidates, blocks, order=self.order, workers=pieces_for or workers, depth=depth)
        self.depth = depth
        self.calls: dict[int, deque[Item]] = {}
        self.away = list(range(workers))
        self.late: list[tuple[int, Item]] = []
        self.named: list[int] = []
        self.blamed: list[Item] = []
        self.work = 0

    # What may happen

    def arrives(self) -> None:
        if self.away:
            worker = self.away.pop(self.choose(len(self.away)))
            self.dispatcher.add(worker)
            self.calls[worker] = deque()

    def asks(self) -> None:
        if self.calls:
            worker = self.pick()
            item = self.dispatcher.next_for(worker)
            if item is not None:
                self.calls[worker].append(item)
                self.check_invariants()

    def works(self) -> None:
        """A busy worker ends its first call, alive or dead."""
        busy = [worker for worker, calls in self.calls.items() if calls]
        if not busy:
            return
        worker = busy[self.choose(len(busy))]
        item = self.calls[worker][0]
        self.work += len(item.candidates)
        if self.poison & set(item.candidates):
            self.dies(worker, blame=True)
        else:
            self.calls[worker].popleft()
            self.dispatcher.done(worker, item, result(item, self.blocks[item.batch]))

    def dies(self, worker: int, blame: bool) -> None:
        calls = self.calls.pop(worker)
        if blame and calls:
            self.blamed.append(calls[0])
        self.late += [(worker, item) for item in calls]
        self.named += self.dispatcher.lost(worker, blame=blame)
        self.away.append(worker)
        self.check_invariants()

    def is_preempted(self) -> None:
        if self.calls:
            self.dies(self.pick(), blame=False)

    def is_killed_once_per_item(self) -> None:
        """A worker is shot, and blamed, unless its item or a part of it was blamed before."""
        hit = {(item.batch, candidate) for item in self.blamed for candidate in item.candidates}
        for worker, calls in self.calls.items():
            if calls and not hit & {(calls[0].batch, candidate) for candidate in calls[0].candidates}:
                self.dies(worker, blame=True)
                return

    def answers_late(self) -> None:
        """A result comes from a worker that was given up."""
        if self.late:
            worker, item = self.late.pop(self.choose(len(self.late)))
            self.dispatcher.done(worker, item, result(item, self.blocks[item.batch]))
            self.check_invariants()

    def pick(self) -> int:
        return list(self.calls)[self.choose(len(self.calls))]

    # What must hold

    def check_invariants(self) -> None:
        in_flight = [(item.batch, candidate) for calls in self.calls.values() for item in calls
                     for candidate in item.candidates]  # fmt: skip
        assert len(in_flight) == len(set(in_flight)), "nothing is given twice at the same time"
        for calls in self.calls.values():
            assert len(calls) <= self.depth
            assert len(calls) == 1 or not any(item.deaths for item in calls), "a suspect is alone on its worker"
        assert self.dispatcher.set_aside == set(self.named)

    def run_down(self) -> None:
        """All workers come back, and nothing happens any more but work."""
        for _ in range(LIMIT):
            if self.dispatcher.finished:
                return
            (self.arrives, self.asks, self.asks, self.works)[self.choose(4)]()
        raise AssertionError("the dispatcher does not finish")

    def check_result(self, aside: frozenset[int]) -> None:
        dispatcher = self.dispatcher
        assert not any(self.calls.values()), "nothing is left in flight"
        assert all(dispatcher.next_for(worker) is None for worker in self.calls)
        assert dispatcher.share_done == 1
        assert len(self.named) == len(set(self.named)), "each is named once"
        assert dispatcher.set_aside == aside
        for batch, size in enumerate(self.blocks):
            wanted = [np.full(size, np.inf) if c in aside else loss(c, batch, size) for c in range(self.candidates)]
            assert np.array_equal(dispatcher.losses[batch], np.reshape(wanted, (self.candidates, size)))


@st.composite
def clusters(draw: st.DrawFn, poisonous: bool = False) -> Cluster:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    candidates = draw(st.integers(1, 24))
    poison = draw(st.frozensets(st.integers(0, candidates - 1), min_size=1, max_size=4)) if poisonous else frozenset()
    return Cluster(
        candidates,
        draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)),
        workers=draw(st.integers(1, 4)),
        choose=lambda count: int(rng.integers(count)),
        poison=poison,
        depth=draw(st.integers(1, 3)),
        pieces_for=draw(st.sampled_from([None, 1, 7])),
    )


def play(cluster: Cluster, data: st.DataObject, *events: str, most: int = 120) -> None:
    """Some of these events in any order, beside arrivals, questions and work."""
    names = ("arrives", "asks", "asks", "works", *events)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for index in rng.integers(len(names), size=data.draw(st.integers(0, most))).tolist():
        getattr(cluster, names[index])()
    cluster.run_down()


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_any_order_gives_the_direct_result(cluster, data):
    play(cluster, data)
    cluster.check_result(frozenset())
    assert cluster.work == cluster.candidates * len(cluster.blocks), "nothing is done twice"


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_deaths_without_blame_set_nothing_aside(cluster, data):
    play(cluster, data, "is_preempted", "answers_late")
    cluster.check_result(frozenset())
    assert all(item.deaths == 0 for item in cluster.blamed)


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_one_kill_per_item_sets_nothing_aside(cluster, data):
    play(cluster, data, "is_killed_once_per_item", "is_preempted", "answers_late", most=300)
    cluster.check_result(frozenset())


@settings(max_examples=200, deadline=None)
@given(clusters(poisonous=True), st.data())
def test_killers_are_found_and_nobody_else(cluster, data):
    play(cluster, data, "is_preempted", "answers_late")
    cluster.check_result(cluster.poison)


@settings(max_examples=100, deadline=None)
@given(clusters(poisonous=True), st.data())
def test_killers_are_found_among_random_kills(cluster, data):
    """Workers are also shot over items that are under no suspicion yet, with or without a killer in them."""
    play(cluster, data, "is_killed_once_per_item", "answers_late")
    cluster.check_result(cluster.poison)


@pytest.mark.parametrize("killer", range(16))
def test_a_killer_takes_few_workers_with_it(killer):
    """One death in company, one alone, then one per halving, and those of the other batches before it was named."""
    rng = np.random.default_rng(killer)
    cluster = Cluster(
        16, [1] * 4, workers=1, choose=lambda n: int(rng.integers(n)), poison=frozenset([killer]), pieces_for=1
    )
    cluster.run_down()
    cluster.check_result(frozenset([killer]))
    assert len(cluster.blamed) == 2 + 4
    assert len(cluster.named) == 1


def test_a_suspect_is_alone_and_the_rest_goes_on():
    dispatcher = Dispatcher(8, [1, 1, 1, 1], workers=2)
    dispatcher.add("a")
    dispatcher.add("b")
    first, second = dispatcher.next_for("a"), dispatcher.next_for("a")
    other = dispatcher.next_for("b")
    assert dispatcher.next_for("a") is None
    assert dispatcher.lost("a", blame=True) == []
    # "b" is at work, so it gets what was only queued; the suspect waits for someone with empty hands.
    again = dispatcher.next_for("b")
    assert (again.candidates, again.batch, again.deaths) == (second.candidates, second.batch, 0)
    dispatcher.add("a")
    suspect = dispatcher.next_for("a")
    assert (suspect.candidates, suspect.batch, suspect.deaths) == (first.candidates, first.batch, 1)
    assert dispatcher.next_for("a") is None
    # "a" dies for another reason: the suspicion stays as it is.
    dispatcher.lost("a", blame=False)
    dispatcher.done("b", other, result(other, 1))
    dispatcher.done("b", again, result(again, 1))
    assert dispatcher.next_for("b").deaths == 1


def test_suspects_do_not_wait_for_a_worker_that_never_comes_back():
    dispatcher = Dispatcher(6, [1], workers=3)
    dispatcher.add("a")
    dispatcher.add("b")
    dispatcher.next_for("a")
    given: deque[Item] = deque([dispatcher.next_for("b")])
    dispatcher.lost("a", blame=True)
    seen = [0]
    for _ in range(100):
        while (item := dispatcher.next_for("b")) is not None:
            given.append(item)
            seen.append(item.deaths)
        if dispatcher.finished:
            break
        item = given.popleft()
        dispatcher.done("b", item, result(item, 1))
    assert dispatcher.finished
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_killer_in_flight_elsewhere_is_waited_for_and_stays_aside():
    """It was named on one batch while another worker was at work at it on the next."""
    for survives in (True, False):
        dispatcher = Dispatcher(2, [1, 2], workers=1)
        dispatcher.add("a")
        dispatcher.add("b")
        dispatcher.next_for("a")
        held = dispatcher.next_for("b")
        assert (held.candidates, held.batch) == ((0, 1), 1)
        named = []
        for _ in range(3):
            named += dispatcher.lost("a", blame=True)
            dispatcher.add("a")
            dispatcher.next_for("a")
        assert len(named) == 1
        (killer,) = named
        while (item := dispatcher.next_for("a")) is not None:
            dispatcher.done("a", item, result(item, 1))
        dispatcher.done("a", Item((1 - killer,), 0), np.zeros((1, 1)))  # nobody's: ignored
        assert np.all([np.isinf(losses[killer]).all() for losses in dispatcher.losses])
        if survives:
            dispatcher.done("b", held, result(held, 2))
            assert np.isinf(dispatcher.losses[1][killer]).all()
            assert np.array_equal(dispatcher.losses[1][1 - killer], loss(1 - killer, 1, 2))
        else:
            # The reason is known, so its neighbour is under no suspicion.
            assert dispatcher.lost("b", blame=True) == []
            dispatcher.add("b")
            again = dispatcher.next_for("b")
            if again is None:
                again = next(iter(dispatcher._held["a"]))
            assert (again.candidates, again.deaths) in [((1 - killer,), 0), ((1 - killer,), 1)]


def test_what_is_no_number_is_infinite():
    dispatcher = Dispatcher(4, [2])
    dispatcher.add(0)
    item = dispatcher.next_for(0)
    assert not dispatcher.finished
    dispatcher.done(0, item, np.array([[np.nan, 1], [np.inf, 2], [-np.inf, 3], [4, 5]]))
    assert dispatcher.finished
    assert np.array_equal(dispatcher.losses[0], [[np.inf, 1], [np.inf, 2], [np.inf, 3], [4, 5]])


@pytest.mark.parametrize("candidates", [0, 1, 3, 16, 128])
@pytest.mark.parametrize("batches", [1, 2, 5, 40])
@pytest.mark.parametrize("workers", [0, 1, 2, 4, 64])
def test_items_are_neighbours_in_the_given_order_and_about_four_per_worker(candidates, batches, workers):
    order = np.random.default_rng(candidates).permutation(candidates).tolist()
    dispatcher = Dispatcher(candidates, [1] * batches, order=order, workers=workers)
    dispatcher.add(0)
    items = []
    while (item := dispatcher.next_for(0)) is not None:
        items.append(item)
        dispatcher.done(0, item, result(item, 1))
    assert dispatcher.finished
    for batch in range(batches):
        assert [c for item in items if item.batch == batch for c in item.candidates] == order
    if candidates and workers > 1:
        assert len(items) >= min(4 * workers, candidates * batches)
        assert len(items) < 4 * workers + batches or len(items) == batches
    elif candidates:
        assert len(items) == batches
