"""The offline limit splits its windows within every bound."""

from itertools import chain, pairwise

from benchmarks.offline import Plan, micro_batches

WINDOW = [[1] * length for length in (3, 40, 12, 12, 5, 41, 4, 11, 30, 12)]


def test_every_text_is_in_one_batch_and_lengths_fall() -> None:
    lengths = [len(ids) for ids in chain.from_iterable(micro_batches(WINDOW, Plan()))]
    assert lengths == sorted(map(len, WINDOW), reverse=True)


def test_each_bound_holds() -> None:
    plan = Plan(max_size=3, max_tokens=80, max_waste=0.05)
    for batch in micro_batches(WINDOW, plan):
        padded = len(batch[0]) * len(batch)
        assert len(batch) <= 3
        assert padded <= 80 or len(batch) == 1
        assert 1 - sum(map(len, batch)) / padded <= 0.05


def test_a_batch_is_cut_only_where_a_bound_asks_for_it() -> None:
    plan = Plan(max_size=4, max_tokens=10_000, max_waste=1.0)
    assert [len(batch) for batch in micro_batches(WINDOW, plan)] == [4, 4, 2]
    waste = Plan(max_size=99, max_tokens=10_000, max_waste=0.1)
    batches = micro_batches(WINDOW, waste)
    assert all(len(earlier[0]) > len(later[0]) for earlier, later in pairwise(batches))
