"""What is believed of the answers of a Cluster's nodes, some of which may be another Cluster's."""

from __future__ import annotations

import pytest

from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address, parse_address
from cachebus.resp.cluster_answers import ClusterAnswers, NodeIds

OURS, THEIRS = (NodeIds(names, names) for names in (frozenset("abc"), frozenset("xyz")))
NONE = NodeIds()
HERE, THERE = [("here", 1), ("here", 2)], [("there", 1), ("there", 2)]


def of(names: str) -> NodeIds:
    return NodeIds(frozenset(names), frozenset(names))


def node(number: int) -> Address:
    return parse_address(f"redis://127.0.0.1:{number}")


def test_two_that_agree_are_enough_where_it_is_known_whose_nodes_they_are() -> None:
    answers = ClusterAnswers[tuple[str, int]](0)
    assert not answers
    answers.add(node(1), HERE, OURS)
    assert not answers.are_enough
    answers.add(node(2), HERE, OURS)
    assert answers.are_enough
    assert answers.believed() == (HERE, OURS)


def test_most_of_all_that_are_named_must_agree_where_it_is_not() -> None:
    answers = ClusterAnswers[tuple[str, int]](5)
    for number in (1, 2):
        answers.add(node(number), THERE, THEIRS)
        assert not answers.are_enough
    for number in (3, 4):
        answers.add(node(number), HERE, OURS)
        assert not answers.are_enough
        assert answers.have_all
    answers.add(node(5), HERE, OURS)
    assert answers.are_enough
    assert answers.believed() == (HERE, OURS)
    assert answers.strangers == [node(1), node(2)]


def test_of_two_clusters_with_as_many_nodes_neither_is_taken() -> None:
    answers = ClusterAnswers[tuple[str, int]](2)
    answers.add(node(1), HERE, OURS)
    answers.add(node(2), THERE, THEIRS)
    with pytest.raises(L2Unavailable, match=r"of two Clusters: 127\.0\.0\.1:1; 127\.0\.0\.1:2"):
        answers.believed()


def test_nodes_that_know_no_place_have_no_say() -> None:
    answers = ClusterAnswers[tuple[str, int]](3)
    answers.add(node(1), [None, None], NONE)
    answers.add(node(2), [None, None], of("e"))
    answers.add(node(3), HERE, OURS)
    assert answers.believed() == (HERE, OURS)
    assert answers.strangers == []


def test_nodes_that_name_no_node_are_of_one_cluster() -> None:
    """What only looks like a Cluster may give its places without ids."""
    answers = ClusterAnswers[tuple[str, int]](0)
    for number in (1, 2):
        answers.add(node(number), HERE, NONE)
    assert answers.are_enough
    assert answers.believed() == (HERE, NONE)
    answers.add(node(3), THERE, THEIRS)
    assert answers.strangers == [node(3)]


def test_two_that_a_third_one_knows_are_of_one_cluster() -> None:
    answers = ClusterAnswers[tuple[str, int]](0)
    answers.add(node(1), HERE, of("a"))
    answers.add(node(2), THERE, of("b"))
    answers.add(node(3), HERE, of("ab"))
    assert answers.believed() == (HERE, of("ab"))
    assert answers.strangers == []


def test_a_place_that_the_first_does_not_know_is_taken_from_the_others() -> None:
    answers = ClusterAnswers[tuple[str, int]](0)
    answers.add(node(1), [("here", 1), None], OURS)
    answers.add(node(2), [("here", 1), ("here", 2)], OURS)
    assert not answers.are_enough
    assert answers.believed() == (HERE, OURS)


def test_two_clusters_of_which_the_silent_ones_may_have_more_are_refused() -> None:
    answers = ClusterAnswers[tuple[str, int]](5)
    for number in (1, 2):
        answers.add(node(number), THERE, THEIRS)
    answers.add(node(3), HERE, OURS)
    with pytest.raises(L2Unavailable, match="of two Clusters"):
        answers.believed()
    answers.add(node(4), THERE, THEIRS)
    assert answers.believed() == (THERE, THEIRS)


@pytest.mark.parametrize(
    ("known", "named", "are"),
    [
        ("abc", "abc", True),
        ("abc", "bcd", True),
        ("abc", "cxy", False),  # one that has left for another Cluster
        ("abc", "c", False),  # one that has lost its memory, or was reset
        ("a", "a", True),
        ("a", "ax", True),
        ("a", "x", False),
    ],
)
def test_one_id_alone_proves_nothing_where_there_are_several(known: str, named: str, are: bool) -> None:
    assert of(named).are_of(of(known)) is are


def test_a_primary_whose_replicas_are_away_is_of_its_cluster() -> None:
    assert of("a").are_of(NodeIds(frozenset("a"), frozenset("abc")))
