import sqlite3
import stat

import numpy as np
import pytest

from applications.face_id.gallery import Gallery
from applications.face_id.refusal import Refusal


def vectors(count, dim=128, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def gallery(gallery_file):
    gallery = Gallery(gallery_file, "model")
    yield gallery
    gallery.close()


def test_the_nearest_photograph_has_the_largest_cosine(gallery):
    enrolled = vectors(30)
    for row, vector in enumerate(enrolled):
        gallery.add(f"person {row % 10}", vector)
    numbers = [gallery.named(f"person {row % 10}").id for row in range(30)]
    for question in vectors(20, seed=1):
        cosines = enrolled @ question
        match = gallery.nearest(question)
        assert (match.person, match.comparisons) == (numbers[cosines.argmax()], 30)
        assert match.score == pytest.approx(cosines.max(), abs=1e-6)
        one = gallery.nearest(question, numbers[3])
        assert (one.person, one.comparisons) == (numbers[3], 3)
        assert one.score == pytest.approx(cosines[3::10].max(), abs=1e-6)


def test_a_gallery_outlives_the_program(gallery, gallery_file):
    (vector,) = vectors(1)
    gallery.add("Ana", vector)
    gallery.close()
    again = Gallery(gallery_file, "model")
    assert again.nearest(vector).score == pytest.approx(1, abs=1e-6)
    assert [person.name for person in again.people()] == ["Ana"]
    again.close()


def test_deleted_means_that_no_byte_is_left(gallery, gallery_file):
    ana, ben = vectors(2)
    crop = bytes(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8))
    gallery.add("Ben Bystander", ben)
    gallery.add("Ana Anyone", ana, crop)
    traces = [b"Ana Anyone", b"ana anyone", ana.tobytes()[:64], crop[100:164], crop[-64:]]
    size = gallery_file.stat().st_size
    before = gallery_file.read_bytes()
    assert all(trace in before for trace in traces)

    gallery.delete_person(gallery.named("Ana Anyone").id)
    after = gallery_file.read_bytes()
    assert not any(trace in after for trace in traces)
    assert b"Ben Bystander" in after and ben.tobytes()[:64] in after
    assert len(after) < size
    assert [file.name for file in gallery_file.parent.iterdir()] == ["gallery.db"]
    assert gallery.nearest(ana).comparisons == 1
    with pytest.raises(Refusal, match="not in the gallery any more"):
        gallery.delete_person(2)


def test_a_person_goes_with_the_last_photograph(gallery, gallery_file):
    first, second = vectors(2)
    numbers = [gallery.add("Ana", vector) for vector in (first, second)]
    gallery.delete_photograph(numbers[0])
    assert first.tobytes()[:64] not in gallery_file.read_bytes()
    assert gallery.named("Ana").photographs == 1
    gallery.delete_photograph(numbers[1])
    assert gallery.people() == []
    with pytest.raises(Refusal, match="Nobody is enrolled yet"):
        gallery.nearest(first)
    assert gallery.add("Ben", first) > max(numbers)  # numbers are not used again


def test_nobody_is_found_whose_file_could_not_be_rewritten(gallery):
    ana, ben = vectors(2)
    numbers = {name: gallery.add(name, vector) for name, vector in (("Ana", ana), ("Ben", ben))}

    def refuse_vacuum(action, *_):  # which attaches the database that it copies to
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK

    gallery._db.set_authorizer(refuse_vacuum)
    gallery.delete_person(gallery.named("Ana").id)
    assert gallery.nearest(ana).person == gallery.named("Ben").id
    gallery.delete_photograph(numbers["Ben"])
    with pytest.raises(Refusal, match="Nobody is enrolled"):
        gallery.nearest(ana)


def test_another_process_deletes(gallery, gallery_file):
    (vector,) = vectors(1)
    gallery.add("Ana", vector)
    other = Gallery(gallery_file, "model")
    assert other.nearest(vector).comparisons == 1
    gallery.delete_person(gallery.named("Ana").id)
    with pytest.raises(Refusal, match="Nobody is enrolled"):
        other.nearest(vector)
    other.close()


def test_another_model_cannot_use_the_embeddings(gallery, gallery_file):
    (vector,) = vectors(1)
    gallery.add("Ana", vector)
    other = Gallery(gallery_file, "another model")
    with pytest.raises(Refusal, match=r"The gallery's .* with another model"):
        other.nearest(vector)
    other.add("Ben", vector)
    assert other.nearest(vector).person == other.named("Ben").id
    ana = other.named("Ana")
    assert (ana.photographs, ana.unusable) == (0, 1)
    with pytest.raises(Refusal, match=r"Ana's .* with another model"):
        other.nearest(vector, ana.id)
    other.close()


@pytest.mark.parametrize("name", [" ana  MARÍA ", "Ana\tMari\u0301a"])
def test_names_are_one_whatever_their_case_spaces_and_accents(gallery, name):
    (vector,) = vectors(1)
    gallery.add("Ana María", vector)
    assert gallery.named(name).name == "Ana María"
    assert gallery.named("Ana Mario") is None


@pytest.mark.parametrize("name", ["", "  \n", "a" * 101])
def test_what_is_no_name_is_refused(gallery, name):
    with pytest.raises(Refusal, match="1 to 100 characters"):
        gallery.add(name, vectors(1)[0])


def test_only_its_owner_may_read_the_file(gallery, gallery_file):
    assert stat.S_IMODE(gallery_file.stat().st_mode) == 0o600


def test_other_files_are_not_galleries(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("These are notes, and nothing else. " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt is not a gallery"):
        Gallery(text, "model")
    later = tmp_path / "later.db"
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(ValueError, match="its version is 7"):
        Gallery(later, "model")
    for version, reason in ((0, "it holds other tables"), (1, "no such table: photographs")):
        foreign = tmp_path / "foreign.db"
        foreign.unlink(missing_ok=True)
        database = sqlite3.connect(foreign)
        database.executescript(
            f"PRAGMA journal_mode = WAL; PRAGMA user_version = {version};"
            "CREATE TABLE letters (text); INSERT INTO letters VALUES ('Dear Ana');"
        )
        database.close()
        before = foreign.read_bytes()
        with pytest.raises(ValueError, match=rf"foreign\.db is not a gallery: {reason}\.$"):
            Gallery(foreign, "model")
        assert foreign.read_bytes() == before
        assert list(tmp_path.glob("foreign*")) == [foreign]  # and no journal beside it
    with pytest.raises(ValueError, match="No such file or directory"):
        Gallery(tmp_path / "missing" / "gallery.db", "model")


def test_a_gallery_that_another_program_has_open_is_no_broken_one(tmp_path):
    Gallery(tmp_path / "gallery.db", "model").close()
    other = sqlite3.connect(tmp_path / "gallery.db")
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("SELECT * FROM people").fetchall()
    with pytest.raises(ValueError, match=r"gallery\.db is used by another program; close it"):
        Gallery(tmp_path / "gallery.db", "model")
    other.close()


def test_letters_that_nobody_sees_make_no_other_name(gallery):
    (vector,) = vectors(1)
    gallery.add("Ana", vector)
    for name in ("Ana\u200b", "\u202eAna", "A\u00adna", "\ufeff ana "):
        gallery.add(name, vector)
    assert [(person.name, person.photographs) for person in gallery.people()] == [("Ana", 5)]
    gallery.add("\u2067Eve\u202e", vector)  # what turns the text around a name is no part of it
    assert gallery.named("Eve").name == "Eve"
    gallery.add("می\u200cخواهم", vector)  # a script that needs one keeps it
    assert gallery.named("می\u200cخواهم").name == "می\u200cخواهم"
    with pytest.raises(Refusal, match="1 to 100 characters"):
        gallery.add("\u200b", vector)
