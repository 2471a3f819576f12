"""Which classes no trusted case holds: nothing vouches for their labels in a training on this data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def classes_not_trusted(
    regions: Mapping[str, Collection[int]], held: Mapping[str, Collection[int]], trusted: Collection[str]
) -> list[str]:
    """Names of the classes or regions that some case holds, but no trusted one, in the order of `regions`.

    Args:
        regions: name -> label values, a case holds it if it holds any of them.
        held: identifier -> label values in that case's label. trusted: identifiers of the trusted ones among these.
    """

    def values_in(cases: Iterable[str]) -> set[int]:
        return {value for case in cases for value in held[case]}

    vouched, anywhere = values_in(trusted), values_in(held)
    return [name for name, values in regions.items() if vouched.isdisjoint(values) and not anywhere.isdisjoint(values)]
