"""Stages of work on one item after another: side by side, in order, and a bounded number of items at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    executor: Executor,
    *,
    ahead: int,
    at_once: bool = False,
) -> Iterator[Result]:
    """Call a function on every item, ahead of whoever takes the results.

    Items may be the results of an earlier stage: they are asked for one by one, in the caller's thread.

    Args:
        function: one stage of the work.
        items: its arguments.
        executor: where it is called.
        ahead: results that are made, or being made, beyond the one that is asked for. So many and one items are at
            work at most.
        at_once: yield what is ready before the next item is asked for: for the last stage, where items take long.

    Yields:
        The results, in the order of the items. What a call, or the making of an item, raises comes in its place, when
        all before it have come out; what has not begun by then never does.
    """
    pending: deque[Future[Result]] = deque()
    source, failure = iter(items), None
    try:
        while True:
            try:
                pending.append(executor.submit(function, next(source)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            while len(pending) > ahead or (at_once and pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in pending:
            future.cancel()


class Here(Executor):
    """Calls at once, in the thread that asks."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Call, and keep what comes of it; Ctrl-C passes."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def worker_thread(name: str) -> Iterator[Executor]:
    """One thread, which does what it is given in order; what it has not begun when the block ends is dropped."""
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield thread
    finally:
        thread.shutdown(cancel_futures=True)
