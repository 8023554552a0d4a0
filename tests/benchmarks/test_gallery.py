"""What the benchmark of gallery search decides itself: what it draws, and what recall is."""

import csv
import sys

import numpy as np
import pytest

from benchmarks import gallery

pytestmark = pytest.mark.any_backend


def test_drawn_embeddings_have_the_cosines_of_real_ones():
    faces = gallery.Faces(128, seed=0)
    people = faces.people(2000)
    first, second = faces.photographs(people), faces.photographs(people)
    np.testing.assert_allclose((first**2).sum(axis=1), 1, atol=1e-5)
    # Quantiles of a published MobileFaceNet's on CelebA.
    one_person = np.quantile((first * second).sum(axis=1), [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(one_person, [0.304, 0.491, 0.605, 0.695, 0.797], atol=0.035)
    two = (first @ second.T)[~np.eye(len(people), dtype=bool)]
    two = np.quantile(two, [0.01, 0.5, 0.99, 0.999, 0.9999])
    np.testing.assert_allclose(two, [-0.226, 0.008, 0.255, 0.342, 0.413], atol=0.035)


def test_a_law_is_found_again_in_what_it_draws():
    law = gallery.Law(people_decay=4.0, photograph_decay=2.0, noise=0.4, noise_spread=0.2)
    faces = gallery.Faces(64, seed=1, law=law)
    labels = np.repeat(np.arange(400), 3)
    found = gallery.fit(faces.photographs(faces.people(400)[labels]), labels)
    np.testing.assert_allclose(found, law, atol=0.6)
    np.testing.assert_allclose(found[2:], law[2:], atol=0.1)


def test_recall_is_counted_for_each_half_of_the_queries():
    found, exact = np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([1, 2, 3, 0, 0, 0, 7, 0])
    assert gallery.recalls(found, exact) == (0.75, 0.25)


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    pytest.importorskip("usearch", reason="usearch is not installed")

    def rows_of(*options):
        table = tmp_path / "gallery.csv"
        command = "gallery.py --sizes 600 --widths 32 --queries 200 --table"
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the program wants, and not all set
        monkeypatch.setattr(sys, "argv", [*command.split(), str(table), *options])
        gallery.main()
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        table.unlink()
        return rows

    return rows_of


def test_exact_searches_answer_as_a_loop_over_the_people(rows_of):
    people, queries = gallery.draw(600, 32, 200, seed=0)
    nearest = [max(range(600), key=lambda row: float(people[row] @ query)) for query in queries]
    named = np.mean([nearest[row] == row for row in range(100)])
    rows = rows_of("--exact", "--storages")
    assert [row["search"] for row in rows] == ["NumPy product", "usearch exact"]
    for row in rows:
        assert row["recall_enrolled"] == row["recall_strangers"] == "1.0"
        assert float(row["named"]) == pytest.approx(named)


def test_an_index_is_searched_wider_until_it_answers_as_the_exact_search(rows_of):
    rows = rows_of("--storages", "f16", "--connectivities", "4", "--expansions", "2", "600", "700")
    assert [row["expansion_search"] for row in rows] == ["2", "600"]
    narrow, wide = (float(row["recall_strangers"]) for row in rows)
    assert narrow < gallery.TARGET <= wide


def test_candidates_of_a_coarse_index_are_judged_by_their_exact_cosine(rows_of):
    alone, judged = (
        rows_of("--storages", "i8", "--expansions", "600", "--candidates", count)[0]
        for count in ("1", "30")
    )
    assert float(alone["recall_enrolled"]) < 0.98
    assert float(judged["recall_enrolled"]) == float(judged["recall_strangers"]) == 1
