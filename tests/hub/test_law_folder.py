"""A law shared like a model: its card, its folder, and the Hub on the loopback address."""

import re

import pytest
from datasets import Dataset
from hub.subset_cards import section
from huggingface_hub import ModelCard, constants

from hf_ppl_select.hub.law_card import law_card
from hf_ppl_select.hub.push_subset import push_subset_to_hub
from hf_ppl_select.law.comparison import compare_scaling_laws
from hf_ppl_select.law.fit import fit_scaling_law
from hf_ppl_select.law.scaling_law import ScalingLaw

TOKEN = "hf_ThisIsTheRightOne"
MODEL = "HuggingFaceTB/SmolLM2-135M"


# The card


def test_card_states_fit_error_and_intervals(law):
    card = law_card(law, license="cc-by-4.0", name="me/medical-law")
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|\{\{|\{%|np\.float|\|\s*\|\s*\|", card.replace("|  | value", ""))
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == MODEL and data["license"] == "cc-by-4.0" and data["library_name"] == "hf_ppl_select"
    assert card.split("---\n")[2].strip().startswith("# medical-law")
    assert "93efa2f" in card and "me/medical@0a1b" in card and str(law) in card

    fit, row = section(card, "How well it fits"), compare_scaling_laws(law.points, form=law.form, space=law.space)[0]
    assert f"{law.report.r2:.4f}" in fit and f"{row['loo_mae']:.4f} ± {row['loo_se']:.4f}" in fit
    assert f"| mean absolute error, largest D left out | {row['held_out_d_mae']:.4f} |" in fit
    assert "8,000 to 32,000" in fit and "24, 8" in fit
    for name, (low, high) in law.param_intervals().items():
        line = f"| `{name}` | {law.params[name]:.6g} | {low:.4g} to {high:.4g} | {law.units[name]} |"
        assert line in section(card, "Parameters")

    predictions = section(card, "What it predicts")
    last = law.points.num_tokens == 32_000
    m, s = (moments[last][0] for moments in law.points.moments("log"))
    for noise in (False, True):
        assert "{:.4f} to {:.4f}".format(*law.interval(m, s, 32_000, noise=noise)) in predictions
    assert 'from_pretrained("me/medical-law")' in section(card, "How to use") and "law.interval(" in card
    assert "nll under it, nats per token, has the mean m and the standard deviation s" in card
    assert not re.search(r"gain of|predicted gain", card)


def test_card_of_a_law_without_intervals_says_so(law_points):
    points = law_points(4)
    law = fit_scaling_law(points, form="no_interaction", space="linear")  # four runs: 4 or more are needed
    assert "not known" not in section(law_card(law), "Parameters")
    few = fit_scaling_law([p for p in points if p["run"] != "r3"], form="no_interaction", space="linear")
    card = law_card(few)
    assert "need 4 or more runs" in card and card.count("not known") >= 12 and "too few for intervals" in card
    assert "a language model that was not recorded" in card and "law.interval(" not in card
    assert "perplexities under it have the mean mu and the standard deviation sigma" in card


def test_card_keeps_local_paths_private(law):
    local = ScalingLaw(law.form, law.space, law.params, law.report, law.points, "/home/me/models/smollm2")
    card = law_card(local)
    assert "/home/me" not in card and "`smollm2`" in card and "base_model" not in card


# The folder


def test_a_saved_law_comes_back(law, tmp_path):
    folder = law.save_pretrained(tmp_path / "law")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "law.json"]
    again = ScalingLaw.from_pretrained(folder)
    assert again.to_dict() == law.to_dict() and again.corpus == "me/medical@0a1b"
    assert again.interval(3.0, 0.2, 2e4) == law.interval(3.0, 0.2, 2e4)
    assert law.save_pretrained(folder, license="mit") == folder  # a law may be replaced
    assert "license: mit" in (folder / "README.md").read_text()
    law.save_pretrained(folder)  # whose licence is nobody's word for the new one
    assert "license" not in (folder / "README.md").read_text().partition("\n---\n")[0]


def test_what_is_not_ours_stays(law, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="README.md of something else"):
        law.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / "law.json").exists()
    with pytest.raises(ValueError, match="is a file"):
        law.save_pretrained(tmp_path / "README.md")
    with pytest.raises(ValueError, match="not an identifier"):
        law.save_pretrained(tmp_path / "new", license="My Licence")
    with pytest.raises(FileNotFoundError, match="has no law.json"):
        ScalingLaw.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        ScalingLaw.from_pretrained(tmp_path / "missing")


# The Hub


def test_push_and_load(law, law_points, hub):
    assert law.push_to_hub("medical-law", license="cc-by-4.0") == f"{hub.endpoint}/me/medical-law"
    assert sorted(hub.repos["me/medical-law"].files()) == ["README.md", "law.json"]
    assert len(hub.repos["me/medical-law"].commits) == 2  # both files in one commit
    first = hub.repos["me/medical-law"].sha
    again = ScalingLaw.from_pretrained("me/medical-law")
    assert again.to_dict() == law.to_dict()

    other = fit_scaling_law(law_points(), form="no_interaction", space="log")
    other.push_to_hub("me/medical-law")
    assert ScalingLaw.from_pretrained("me/medical-law").form == "no_interaction"
    assert ScalingLaw.from_pretrained("me/medical-law", revision=first).form == "log_parabola"
    constants.HF_HUB_OFFLINE = True  # put back by the fixture
    assert ScalingLaw.from_pretrained("me/medical-law").form == "no_interaction"


def test_the_law_of_a_subset_comes_from_its_dataset(law, hub):
    subset = Dataset.from_dict({"text": ["a", "b"], "perplexity": [9.0, 12.0], "num_tokens": [5, 7]})
    push_subset_to_hub(subset, "me/subset", law=law, license="cc-by-4.0")
    again = ScalingLaw.from_pretrained("me/subset", repo_type="dataset")
    assert again.to_dict() == law.to_dict()
    first = hub.repos["me/subset"].sha
    push_subset_to_hub(subset, "me/subset", license="cc-by-4.0")
    with pytest.raises(FileNotFoundError, match="the dataset me/subset has no law.json: no law was pushed there"):
        ScalingLaw.from_pretrained("me/subset", repo_type="dataset")
    assert ScalingLaw.from_pretrained("me/subset", repo_type="dataset", revision=first).form == law.form
    with pytest.raises(FileNotFoundError, match="the Hub has no dataset me/nothing that this token may read"):
        ScalingLaw.from_pretrained("me/nothing", repo_type="dataset")
    with pytest.raises(ValueError, match="repo_type must be 'model' or 'dataset', got 'data'"):
        ScalingLaw.from_pretrained("me/subset", repo_type="data")


def test_private_means_private(law, hub):
    law.push_to_hub("me/secret", private=True)
    assert hub.repos["me/secret"].private
    law.push_to_hub("me/open")
    with pytest.raises(ValueError, match="exists and is public"):
        law.push_to_hub("me/open", private=True)


def test_errors_on_the_hub_are_plain(law, hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no model me/nothing that this token may read"):
        ScalingLaw.from_pretrained("me/nothing")
    law.push_to_hub("me/law")
    with pytest.raises(FileNotFoundError, match="no revision 'v9'|no law.json at revision 'v9'"):
        ScalingLaw.from_pretrained("me/law", revision="v9")
    hub.repos["me/law"].commits.append(("empty", {}))
    with pytest.raises(FileNotFoundError, match="has no law.json"):
        ScalingLaw.from_pretrained("me/law")
    hub.fail["POST .*/commit/main"] = 503
    with pytest.raises(ConnectionError, match="stopped.*503"):
        law.push_to_hub("me/law")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match="refuses the token") as caught:
        law.push_to_hub("me/law")
    assert "hf_wrong" not in str(caught.value)
    with pytest.raises(PermissionError, match="refuses the token"):
        ScalingLaw.from_pretrained("me/law")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail[".*"] = 0
    with pytest.raises(ConnectionError, match="cannot be asked|Check the network"):
        ScalingLaw.from_pretrained("me/never-seen")


def test_offline_mode_says_so(law, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is on"):
        law.push_to_hub("me/law")
