import itertools

from hypothesis import given
from hypothesis import strategies as st

from crossmost.runtime.engine_shapes import ALIGNMENT, chunks, offsets, padded_batch, padded_points


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 512))
def test_a_batch_is_padded_within_what_the_engine_takes(count, least, more):
    most = max(count, least) + more - 1
    size = padded_batch(count, least, most)
    assert max(count, least) <= size <= most
    assert size == least or 2 * size <= 3 * count


def test_few_batches_serve_all():
    assert sorted({padded_batch(count, 1, 64) for count in range(1, 65)}) == [
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        48,
        64,
    ]


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_points_are_padded_to_few_sizes(count, more):
    most = count + more
    assert count <= padded_points(count, most) <= most
    assert padded_points(count, 10**9).bit_count() == 1


@given(st.integers(1, 300), st.integers(1, 64))
def test_chunks_cover_all_in_order(count, most):
    found = [range(count)[part] for part in chunks(count, most)]
    assert list(itertools.chain(*found)) == list(range(count))
    assert all(len(part) == most for part in found[:-1])
    assert 1 <= len(found[-1]) <= most


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_tensors_are_aligned_and_do_not_overlap(sizes):
    starts, end = offsets(sizes)
    assert all(start % ALIGNMENT == 0 for start in starts)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    assert all(before <= after for before, after in zip(ends, [*starts[1:], end], strict=True))
