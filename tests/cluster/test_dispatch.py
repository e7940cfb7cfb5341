"""Whatever order results, deaths and returns come in: every candidate has its own loss, and only killers are set aside.

`Cluster` plays the carrier and the workers. hypothesis decides what happens next; when it has had its say, everything
that is left goes by itself. `Clocked` plays workers of some speed, for how long it all takes.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.cluster.dispatch import Dispatcher, Item, shares
from evoray.cluster.speeds import Speeds

LIMIT = 20_000


class Cluster:
    """Workers that hold calls in order and work at the first; a call with a poisonous candidate kills its worker.

    Every call answers with numbers of its own, so that it shows whose answer counted.

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
        expected: int | None = None,
        copies: bool = True,
        speeds: Speeds | None = None,
        spare: Sequence[float] = (),
    ) -> None:
        self.candidates, self.blocks, self.poison, self.choose = candidates, blocks, poison, choose
        draws = np.random.default_rng(candidates)
        self.dispatcher = Dispatcher(
            candidates,
            blocks,
            order=draws.permutation(candidates).tolist(),
            shares=draws.random(candidates).tolist(),
            workers=workers if expected is None else expected,
            depth=depth,
            copies=copies,
            speeds=speeds,
            spare=spare,
        )
        self.depth, self.copies = depth, copies
        self.now = 0.0
        self.calls: dict[int, deque[Item]] = {}
        self.away = list(range(workers))
        self.late: list[tuple[int, Item]] = []
        self.named: list[int] = []
        self.blamed: list[Item] = []
        self.work = 0
        self.answers = 0
        self.first: dict[tuple[int, int], np.ndarray] = {}

    # What may happen

    def arrives(self) -> None:
        if self.away:
            worker = self.away.pop(self.choose(len(self.away)))
            self.dispatcher.add(worker)
            self.calls[worker] = deque()

    def asks(self) -> None:
        for worker, item in self.dispatcher.assign(self.now):
            self.calls[worker].append(item)
        self.check_invariants()

    def time_passes(self) -> None:
        self.now += (0.001, 1.0, 1000.0)[self.choose(3)]

    def works(self) -> None:
        """A busy worker ends its first call, alive or dead."""
        busy = [worker for worker, calls in self.calls.items() if calls]
        if not busy:
            return
        worker = busy[self.choose(len(busy))]
        item = self.calls[worker][0]
        self.now += 0.01 * self.choose(100)
        self.work += len(item.candidates)
        if self.poison & set(item.candidates):
            self.dies(worker, blame=True)
        else:
            self.calls[worker].popleft()
            losses = self.answer(item)
            for candidate, loss in zip(item.candidates, losses, strict=True):
                if candidate not in self.dispatcher.set_aside:
                    self.first.setdefault((item.batch, candidate), loss)
            self.dispatcher.done(worker, item, losses, self.now)

    def answer(self, item: Item) -> np.ndarray:
        self.answers += 1
        shape = len(item.candidates), self.blocks[item.batch]
        return self.answers + np.random.default_rng(self.answers).random(shape)

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

    def is_drained(self) -> None:
        """A worker ends what it holds; its node leaves it time for that."""
        if self.calls:
            worker = self.pick()
            self.dispatcher.retire(worker)
            held = len(self.calls[worker])
            self.asks()
            assert len(self.calls[worker]) == held
            if not held:
                self.dies(worker, blame=False)
            else:
                self.dispatcher.add(worker)

    def is_killed_twice_per_pair(self) -> None:
        """A worker is shot, and blamed, unless any of the pairs it is at was blamed twice."""
        hits: dict[tuple[int, int], int] = {}
        for item in self.blamed:
            for candidate in item.candidates:
                hits[item.batch, candidate] = hits.get((item.batch, candidate), 0) + 1
        for worker, calls in self.calls.items():
            if calls and all(hits.get((calls[0].batch, candidate), 0) < 2 for candidate in calls[0].candidates):
                self.dies(worker, blame=True)
                return

    def answers_late(self) -> None:
        """A result comes from a worker that was given up."""
        if self.late:
            worker, item = self.late.pop(self.choose(len(self.late)))
            self.dispatcher.done(worker, item, self.answer(item), self.now)
            self.check_invariants()

    def pick(self) -> int:
        return list(self.calls)[self.choose(len(self.calls))]

    # What must hold

    def check_invariants(self) -> None:
        in_flight = [
            (item.batch, candidate) for calls in self.calls.values() for item in calls for candidate in item.candidates
        ]
        most = max((in_flight.count(pair) for pair in in_flight), default=0)
        assert most <= (2 if self.copies else 1), "nothing is given twice, or thrice, at the same time"
        for calls in self.calls.values():
            assert len(calls) <= self.depth
            assert len(calls) == 1 or not any(item.deaths for item in calls), "a suspect is alone on its worker"
        assert self.dispatcher.set_aside == set(self.named)

    def run_down(self) -> None:
        """All workers come back, and nothing happens any more but work."""
        for _ in range(LIMIT):
            if self.dispatcher.finished:
                return
            (self.arrives, self.asks, self.time_passes, self.works)[self.choose(4)]()
        raise AssertionError("the dispatcher does not finish")

    def check_result(self, aside: frozenset[int]) -> None:
        dispatcher = self.dispatcher
        assert list(dispatcher.assign(self.now)) == []
        assert set(dispatcher.holding()) == {worker for worker, calls in self.calls.items() if calls}
        assert dispatcher.share_done == 1
        assert len(self.named) == len(set(self.named)), "each is named once"
        assert dispatcher.set_aside == aside
        for batch, size in enumerate(self.blocks):
            wanted = [np.full(size, np.inf) if c in aside else self.first[batch, c] for c in range(self.candidates)]
            assert np.array_equal(dispatcher.losses[batch], np.reshape(wanted, (self.candidates, size)))


@st.composite
def clusters(draw: st.DrawFn, poisonous: bool = False, copies: bool | None = None) -> Cluster:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    candidates = draw(st.integers(1, 24))
    poison = draw(st.frozensets(st.integers(0, candidates - 1), min_size=1, max_size=4)) if poisonous else frozenset()
    speeds = Speeds()
    for worker in draw(st.sets(st.integers(0, 3))):
        speeds.tell(worker, draw(st.sampled_from([0.01, 1.0, 3.0, 1000.0])), 1.0)
    return Cluster(
        candidates,
        draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)),
        workers=draw(st.integers(1, 4)),
        choose=lambda count: int(rng.integers(count)),
        poison=poison,
        depth=draw(st.integers(1, 3)),
        expected=draw(st.sampled_from([None, 0, 7])),
        copies=draw(st.booleans()) if copies is None else copies,
        speeds=speeds,
        spare=draw(st.lists(st.floats(0.01, 4.0), max_size=6)),
    )


def play(cluster: Cluster, data: st.DataObject, *events: str, most: int = 120) -> None:
    """Some of these events in any order, beside arrivals, questions and work."""
    names = ("arrives", "asks", "asks", "works", "time_passes", *events)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for index in rng.integers(len(names), size=data.draw(st.integers(0, most))).tolist():
        getattr(cluster, names[index])()
    cluster.run_down()


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_any_order_gives_one_answer_for_each_pair(cluster, data):
    play(cluster, data)
    cluster.check_result(frozenset())


@settings(max_examples=50, deadline=None)
@given(clusters(copies=False), st.data())
def test_nothing_is_done_twice_where_that_is_forbidden(cluster, data):
    play(cluster, data)
    cluster.check_result(frozenset())
    assert cluster.work == cluster.candidates * len(cluster.blocks)


@settings(max_examples=100, deadline=None)
@given(clusters(), st.data())
def test_deaths_without_blame_set_nothing_aside(cluster, data):
    play(cluster, data, "is_preempted", "answers_late", "is_drained")
    cluster.check_result(frozenset())
    assert all(item.deaths == 0 for item in cluster.blamed)


@settings(max_examples=200, deadline=None)
@given(clusters(), st.data())
def test_two_chance_kills_set_nothing_aside(cluster, data):
    play(cluster, data, "is_killed_twice_per_pair", "is_preempted", "answers_late", most=300)
    cluster.check_result(frozenset())


@settings(max_examples=200, deadline=None)
@given(clusters(poisonous=True), st.data())
def test_killers_are_found_and_nobody_else(cluster, data):
    play(cluster, data, "is_preempted", "answers_late", "is_drained")
    cluster.check_result(cluster.poison)


@settings(max_examples=100, deadline=None)
@given(clusters(poisonous=True, copies=False), st.data())
def test_killers_are_found_without_copies(cluster, data):
    play(cluster, data, "is_preempted", "answers_late")
    cluster.check_result(cluster.poison)


@pytest.mark.parametrize("killer", range(16))
def test_a_killer_takes_few_workers_with_it(killer):
    """One death in company, one alone, then one per halving, and those of the other batches before it was named."""
    rng = np.random.default_rng(killer)
    cluster = Cluster(16, [1] * 4, workers=1, choose=lambda n: int(rng.integers(n)), poison=frozenset([killer]))
    cluster.run_down()
    cluster.check_result(frozenset([killer]))
    assert len(cluster.blamed) == 2 + 4
    assert len(cluster.named) == 1


def test_a_candidate_that_was_always_alone_is_set_aside_with_the_third_death():
    dispatcher = Dispatcher(1, [1])
    for death in (1, 2, 3):
        dispatcher.add("a")
        assert len(list(dispatcher.assign(0.0))) == 1
        assert dispatcher.lost("a", blame=True) == ([0] if death == 3 else [])
    assert dispatcher.finished


def test_a_suspect_is_alone_and_the_rest_goes_on():
    dispatcher = Dispatcher(2, [1] * 12, copies=False, workers=2)
    for worker in "ab":
        dispatcher.add(worker)
    given = list(dispatcher.assign(0.0))
    first, second = (item for worker, item in given if worker == "a")
    assert dispatcher.lost("a", blame=True) == []
    # "b" is at work and has enough; the suspect waits for someone with empty hands.
    assert list(dispatcher.assign(0.0)) == []
    dispatcher.add("a")
    ((worker, suspect),) = dispatcher.assign(0.0)
    assert (worker, suspect.candidates, suspect.batch, suspect.deaths) == ("a", first.candidates, first.batch, 1)
    # "a" dies for another reason: the suspicion stays as it is.
    dispatcher.lost("a", blame=False)
    for _, item in [entry for entry in given if entry[0] == "b"]:
        dispatcher.done("b", item, np.zeros((len(item.candidates), 1)))
    ((_, again),) = dispatcher.assign(0.0)
    assert (again.candidates, again.batch, again.deaths) == (first.candidates, first.batch, 1)
    assert second.deaths == 0


def test_a_killer_in_flight_elsewhere_stays_aside():
    """It was named on one batch while another worker was at work at it on the next."""
    for survives in (True, False):
        speeds = Speeds()
        speeds.tell("a", 1.0, 1.0)
        speeds.error = 0.01
        dispatcher = Dispatcher(2, [1, 1], speeds=speeds, workers=2)
        dispatcher.add("a")
        dispatcher.add("b")
        held, named = dict(dispatcher.assign(0.0))["b"], []
        assert held.candidates == (0, 1)
        while not named:
            named += dispatcher.lost("a", blame=True)
            dispatcher.add("a")
            list(dispatcher.assign(0.0))
        (killer,) = named
        assert np.all([np.isinf(losses[killer]).all() for losses in dispatcher.losses])
        if survives:
            dispatcher.done("b", held, np.array([[1.0], [2.0]]))
            assert np.isinf(dispatcher.losses[held.batch][killer]).all()
        else:
            # The reason is known, so its neighbour is under no suspicion.
            assert dispatcher.lost("b", blame=True) == []
            dispatcher.add("b")
            assert [(item.candidates, item.deaths) for _, item in dispatcher.assign(0.0)] == [((1 - killer,), 0)]


def test_what_is_no_number_is_infinite():
    dispatcher = Dispatcher(4, [2])
    dispatcher.add(0)
    ((_, item),) = dispatcher.assign(0.0)
    assert not dispatcher.finished
    dispatcher.done(0, item, np.array([[np.nan, 1], [np.inf, 2], [-np.inf, 3], [4, 5]]))
    assert dispatcher.finished
    assert np.array_equal(dispatcher.losses[0], [[np.inf, 1], [np.inf, 2], [np.inf, 3], [4, 5]])


@pytest.mark.parametrize("candidates", [0, 1, 3, 16, 128])
@pytest.mark.parametrize("batches", [1, 2, 5, 40])
def test_one_worker_does_each_batch_in_one_go(candidates, batches):
    order = np.random.default_rng(candidates).permutation(candidates).tolist()
    dispatcher = Dispatcher(candidates, [1] * batches, order=order)
    dispatcher.add(0)
    items = []
    while given := list(dispatcher.assign(0.0)):
        for _, item in given:
            items.append(item)
            dispatcher.done(0, item, np.zeros((candidates, 1)))
    assert dispatcher.finished
    if candidates:
        assert [(item.batch, list(item.candidates)) for item in items] == [(batch, order) for batch in range(batches)]


# How long it takes


class Clocked:
    """Workers of given speeds. Runs to the end; `ends` is when each was through with what it was given.

    Args:
        rates: units per second, per worker; 0 for one that never answers.
    """

    def __init__(self, dispatcher: Dispatcher, rates: Sequence[float], start: float = 0.0) -> None:
        self.items: list[tuple[int, Item]] = []
        free = [start] * len(rates)
        events: list[tuple[float, int, int, Item]] = []
        for worker in range(len(rates)):
            dispatcher.add(worker)
        now = start
        while not dispatcher.finished:
            for worker, item in dispatcher.assign(now):
                self.items.append((worker, item))
                if rates[worker]:
                    free[worker] = max(free[worker], now) + item.cost / rates[worker]
                    heapq.heappush(events, (free[worker], len(self.items), worker, item))
            if events and events[0][0] <= dispatcher.wake:
                now, _, worker, item = heapq.heappop(events)
                dispatcher.done(worker, item, np.zeros((len(item.candidates), 1)), now)
            else:
                now = max(now, dispatcher.wake)
            assert np.isfinite(now), "nothing would happen any more"
        self.end, self.ends = now, free


RATES = st.lists(st.floats(0.5, 4.0), min_size=2, max_size=12)


@settings(max_examples=100, deadline=None)
@given(RATES, st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_the_last_worker_ends_with_the_first(rates, candidates, batches, seed):
    """With speeds that were measured, nobody waits longer than the slowest takes for about a pass."""
    speeds = Speeds()
    speeds.error = 0.01
    for worker, rate in enumerate(rates):
        speeds.tell(worker, rate, 1.0)
    of = np.random.default_rng(seed).random(candidates).tolist()
    dispatcher = Dispatcher(candidates, [1] * batches, shares=of, speeds=speeds, workers=len(rates), copies=False)
    run = Clocked(dispatcher, rates)
    work = sum(item.cost for _, item in run.items)
    ideal = work / sum(rates)
    assert run.end <= 1.1 * ideal + 1.5 / min(rates)
    for worker, item in run.items:
        assert all(after == before + 1 for before, after in zip(item.candidates, item.candidates[1:], strict=False)), (
            worker
        )


def test_cuts_are_few_and_cost_little():
    """128 candidates on 8 workers: as many items as workers and some to even out, cut where little is shared."""
    speeds = Speeds()
    for worker in range(8):
        for _ in range(40):
            speeds.tell(worker, 1.0, 1.0)
    of = np.random.default_rng(0).random(128).tolist()
    whole = Dispatcher(128, [1] * 4, shares=of)
    whole.add(0)
    ideal = 4 * next(iter(whole.assign(0.0)))[1].cost
    run = Clocked(Dispatcher(128, [1] * 4, shares=of, speeds=speeds, workers=8), [1.0] * 8)
    assert len(run.items) <= 24
    assert sum(item.cost for _, item in run.items) <= 1.02 * ideal
    assert run.end <= 1.04 * ideal / 8


def test_a_slow_workers_share_is_done_by_others_and_is_small_the_next_time():
    speeds, rates = Speeds(), [1.0] * 7 + [0.1]
    ideal = 32 * 8 / sum(rates)
    first = Clocked(Dispatcher(32, [1] * 8, speeds=speeds, workers=8), rates)
    assert first.end <= 1.5 * ideal
    speeds.tell(7, 0.1, 1.0)
    second = Clocked(Dispatcher(32, [1] * 8, speeds=speeds, workers=8), rates)
    assert second.end <= 1.1 * ideal
    alone = Clocked(Dispatcher(32, [1] * 8, speeds=speeds, workers=8, copies=False), rates)
    assert alone.end <= 1.25 * ideal


def test_a_worker_that_never_answers_holds_nothing_up_and_is_named():
    speeds = Speeds()
    for worker in range(4):
        speeds.tell(worker, 1.0, 1.0)
    dispatcher = Dispatcher(32, [1] * 4, speeds=speeds, workers=4, hung_after=5.0)
    run = Clocked(dispatcher, [1.0, 1.0, 1.0, 0.0])
    assert run.end <= 2.5 * 32
    assert dispatcher.holding() == [3]
    deadline = dispatcher.deadline(3)
    assert deadline > 100, "20 times what was expected"
    assert dispatcher.hung(deadline - 1) == []
    assert dispatcher.hung(deadline + 1) == [3]
    assert dispatcher.lost(3, blame=True) == []


def test_before_anything_is_known_only_a_limit_tells_who_hangs():
    dispatcher = Dispatcher(4, [1], hung_after=1.0, hung_at_start=50.0)
    dispatcher.add(0)
    assert dispatcher.hung(1e9) == [], "who has no work can't be late with it"
    ((_, item),) = dispatcher.assign(10.0)
    assert dispatcher.hung(60.0) == []
    assert dispatcher.hung(60.5) == [0]
    dispatcher.done(0, item, np.zeros((4, 1)), 20.0)
    assert dispatcher.hung(1e9) == []


def test_once_anybody_has_answered_that_limit_is_nobodys():
    dispatcher = Dispatcher(8, [1], workers=2, hung_after=1.0, hung_at_start=500.0)
    dispatcher.add(0)
    dispatcher.add(1)
    given_ = list(dispatcher.assign(0.0))
    assert dispatcher.deadline(1) == 500.0
    first = next(item for worker, item in given_ if worker == 0)
    dispatcher.done(0, first, np.zeros((len(first.candidates), 1)), first.cost)
    assert dispatcher.deadline(1) == pytest.approx(20 * sum(item.cost for worker, item in given_ if worker == 1))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 2**32))
def test_workers_that_hang_on_their_first_item_cost_the_limit_and_no_candidate(candidates, batches, hangs, seed):
    """The first process of some workers never answers, and nobody knows any speed. The carrier kills who is named."""
    of = np.random.default_rng(seed).random(candidates).tolist()
    dispatcher = Dispatcher(candidates, [1] * batches, shares=of, workers=len(hangs), hung_at_start=1000.0)
    queues: dict[int, deque[Item]] = {worker: deque() for worker in range(len(hangs))}
    hanging, now, steps = {worker for worker, hang in enumerate(hangs) if hang}, 0.0, 0
    for worker in queues:
        dispatcher.add(worker)
    while not dispatcher.finished:
        steps += 1
        assert steps < LIMIT
        for worker, item in dispatcher.assign(now):
            queues[worker].append(item)
        working = [worker for worker, queue in queues.items() if queue and worker not in hanging]
        if working:
            worker = working[steps % len(working)]
            item = queues[worker].popleft()
            now += item.cost
            dispatcher.done(worker, item, np.array([[float(c)] for c in item.candidates]), now)
            continue
        now = max(now, min(dispatcher.deadline(worker) for worker in dispatcher.holding()) + 0.5)
        for worker in dispatcher.hung(now):
            assert worker in hanging, "one that works was named"
            assert dispatcher.lost(worker, blame=True) == []
            hanging.discard(worker)
            queues[worker].clear()
            dispatcher.add(worker)
    assert all(dispatcher.losses[batch][:, 0].tolist() == list(range(candidates)) for batch in range(batches))
    assert now <= 1000.5 + 40 * candidates * batches


def test_a_candidate_that_hangs_every_worker_is_set_aside_though_no_speed_is_ever_known():
    dispatcher = Dispatcher(1, [1], hung_at_start=100.0)
    now, aside = 0.0, []
    while not dispatcher.finished:
        dispatcher.add(0)
        assert list(dispatcher.assign(now))
        now = dispatcher.deadline(0) + 1
        assert dispatcher.hung(now) == [0]
        aside += dispatcher.lost(0, blame=True)
    assert (aside, now) == ([0], 303.0)


def test_a_new_worker_gets_its_part_of_what_is_left():
    speeds = Speeds()
    speeds.tell(0, 1.0, 1.0)
    dispatcher = Dispatcher(16, [1] * 8, speeds=speeds, workers=1)
    dispatcher.add(0)
    list(dispatcher.assign(0.0))
    dispatcher.add(1)
    assert [worker for worker, _ in dispatcher.assign(1.0)].count(1) == 2


def test_who_has_nothing_to_do_begins_what_may_be_asked_for_next_and_nobody_waits_for_it():
    """One pair for four equal workers: the others take what is through as early, and no more."""
    speeds = Speeds()
    for worker in range(4):
        speeds.tell(worker, 1.0, 1.0)
    dispatcher = Dispatcher(1, [1], weights=[4.0], speeds=speeds, workers=4, spare=[4.0, 2.0, 9.0, 1.0])
    run = Clocked(dispatcher, [1.0] * 4)
    # The third would be late, so the fourth worker stays idle: what stands first is likeliest to be needed.
    assert [(item.spare, item.cost) for _, item in run.items if item.spare is not None] == [(0, 4.0), (1, 2.0)]
    assert run.end == 4.0
    plain = Clocked(Dispatcher(1, [1], weights=[4.0], speeds=speeds, workers=4), [1.0] * 4)
    assert plain.end == run.end


def test_nothing_spare_is_begun_before_speeds_are_known_or_while_anything_waits():
    dispatcher = Dispatcher(1, [1], workers=3, spare=[0.1])
    for worker in range(3):
        dispatcher.add(worker)
    assert [item.spare for _, item in dispatcher.assign(0.0)] == [None]
    speeds = Speeds()
    speeds.tell(0, 1.0, 1.0)
    busy = Dispatcher(64, [1] * 4, speeds=speeds, workers=1, spare=[0.001])
    busy.add(0)
    assert all(item.spare is None for _, item in busy.assign(0.0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.data())
def test_what_is_known_or_under_way_is_not_given_again(candidates, batches, data):
    pairs = [(candidate, batch) for candidate in range(candidates) for batch in range(batches)]
    known = {pair: np.array([float(pair[0])]) for pair in data.draw(st.lists(st.sampled_from(pairs), unique=True))}
    left = [pair for pair in pairs if pair not in known]
    begun = data.draw(st.lists(st.sampled_from(left), unique=True, max_size=3)) if left else []
    under_way = [(number, *pair, 0.0) for number, pair in enumerate(begun)]
    dispatcher = Dispatcher(candidates, [1] * batches, known=known, under_way=under_way, copies=False)
    assert [(item.candidates, item.batch) for _, item in dispatcher.adopted] == [((c,), b) for c, b in begun]
    dispatcher.add(9)
    given_, queue = [], [(worker, item) for worker, item in dispatcher.adopted]
    while not dispatcher.finished:
        queue += list(dispatcher.assign(1.0))
        worker, item = queue.pop(0)
        given_ += [(candidate, item.batch) for candidate in item.candidates]
        dispatcher.done(worker, item, np.array([[float(c)] for c in item.candidates]), 2.0)
    assert sorted(given_) == sorted(left)
    assert all(dispatcher.losses[batch][candidate, 0] == candidate for candidate, batch in pairs)


def test_a_lost_worker_with_something_under_way_leaves_it_to_others():
    dispatcher = Dispatcher(2, [1], under_way=[(0, 1, 0, 0.0)], spare=[1.0])
    dispatcher.add(5)
    first = list(dispatcher.assign(0.0))
    assert [item.candidates for _, item in first] == [(0,)]
    assert dispatcher.lost(0, blame=True) == []
    dispatcher.done(5, first[0][1], np.zeros((1, 1)), 1.0)
    again = list(dispatcher.assign(1.0))
    assert [(worker, item.candidates) for worker, item in again] == [(5, (1,))]


def test_items_are_not_smaller_than_the_driver_can_serve():
    """At 10 ms an item, 64 workers with 4 units of work among them are not all used."""
    speeds = Speeds()
    for worker in range(64):
        speeds.tell(worker, 1.0, 0.001)
    dispatcher = Dispatcher(64, [1] * 4, speeds=speeds, workers=64, per_item=0.01, copies=False)
    run = Clocked(dispatcher, [1000.0] * 64)
    assert len(run.items) <= 16


def test_shares_are_what_stands_behind_the_first_difference():
    rows_NL = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    assert shares(rows_NL) == [1.0, 0.25, 0.75, 0.0, 1.0]
    assert shares(np.zeros((2, 0))) == [1.0, 1.0]
