"""The page pool loses nothing and lies about nothing, whatever is asked of it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyengine.engine.cache import PAGE, ROOT, PagePool


class Pool(RuleBasedStateMachine):
    """Random takers, sharers and publishers; a model of each known page's content beside it."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(5)
        self.tables: list[list[int]] = []
        self.content: dict[int, tuple] = {}  # page -> ids written when it was published

    @precondition(lambda self: self.pool.available)
    @rule(ids=st.lists(st.integers(0, 2), min_size=1, max_size=2))
    def take_and_publish(self, ids):
        page = self.pool.take()
        self.content[page] = tuple(ids)
        self.tables.append([page])
        serial = self.pool.publish(page, ROOT, [*ids, *[9] * (PAGE - len(ids))])
        assert serial != ROOT

    @precondition(lambda self: self.pool.available)
    @rule()
    def take_only(self):
        page = self.pool.take()
        self.content.pop(page, None)
        self.tables.append([page])

    @rule(ids=st.lists(st.integers(0, 2), min_size=1, max_size=2))
    def look_up_and_share(self, ids):
        prefix = self.pool.lookup([*ids, *[9] * (PAGE - len(ids)), 1])
        for page in prefix.pages:
            assert self.content[page] == tuple(ids)
            self.pool.share(page)
        self.tables.append(list(prefix.pages))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        for page in self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))):
            self.pool.release(page)

    @rule()
    def forget(self):
        self.pool.forget()

    @invariant()
    def nothing_is_lost(self):
        self.pool.check(self.tables)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_lookup_leaves_the_last_token_to_compute():
    pool = PagePool(4)
    ids = list(range(2 * PAGE))
    serial = pool.publish(pool.take(), ROOT, ids[:PAGE])
    pool.publish(pool.take(), serial, ids[PAGE:])
    assert pool.lookup(ids).tokens == PAGE  # the whole prompt is known, but its last page must give logits
    assert pool.lookup([*ids, 7]).tokens == 2 * PAGE


def test_tail_is_found_by_exactly_its_ids():
    pool = PagePool(4)
    page = pool.take()
    pool.publish(page, ROOT, [1, 2, 3])
    assert pool.lookup([1, 2, 3, 4]).tail == page
    assert pool.lookup([1, 2, 3]).tail is None
    assert pool.lookup([1, 2, 3, 4, 5]).tail is None


def test_a_child_of_a_forgotten_page_is_not_found_again():
    pool = PagePool(2)
    first, second = pool.take(), pool.take()
    ids = list(range(2 * PAGE))
    serial = pool.publish(first, ROOT, ids[:PAGE])
    pool.publish(second, serial, ids[PAGE:])
    pool.release(first)
    pool.release(second)
    assert pool.take() == first  # the older idle page is given away; its child stays known, but out of reach
    pool.publish(first, ROOT, ids[:PAGE])
    assert pool.lookup([*ids, 1]).pages == (first,)


def test_no_page_is_an_error():
    pool = PagePool(1)
    pool.take()
    with pytest.raises(IndexError):
        pool.take()
