"""Every recipe's options: what is wrong with a configuration or an option is said before any work."""

import importlib

import pytest

from hf_ppl_select.command import COMMANDS

BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]\n" for i in range(30))
SCRIPTS = [script for script, _ in COMMANDS.values()]


def options_to_start(script):
    """What a recipe cannot do without, so that the rest of its options is looked at."""
    actions = importlib.import_module(script).make_parser()._actions
    needed = [part for action in actions if action.required for part in (action.option_strings[0], "1")]
    if script == "select_subset":
        needed += ["--num_tokens", "1"]
    return needed + ["--use_cpu"] * any(action.dest == "use_cpu" for action in actions)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_wrong_with_the_options_is_one_error(script, run_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.yaml").write_text("no_such_key: 1\n")
    (tmp_path / "broken.yaml").write_text("no_such_key: [1\n")
    (tmp_path / "list.yaml").write_text("- no_such_key\n")
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "twice.yaml").write_text("seed: 1\noutput_dir: a\nseed: 2\n")
    (tmp_path / "twice_inside.yaml").write_text("env: {A: 1, B: 2, A: 3}\n")
    (tmp_path / "deep.yaml").write_text("no_such_key: " + "[" * 100_000 + "]" * 100_000)
    (tmp_path / "binary.yaml").write_bytes(b"\x93\xff\x00PNG")
    before = sorted(tmp_path.iterdir())
    needed = options_to_start(script)
    for options, message in (
        (["--no_such_option", "1"], "no_such_option"),
        (["--config", "unknown.yaml"], "no_such_key"),
        (["--config", "broken.yaml"], "expected ',' or ']'"),
        (["--config", "list.yaml"], "list.yaml holds list, not options like `seed: 0`"),
        (["--config", "missing.yaml"], "No such file or directory: 'missing.yaml'"),
        (["--config"], "--config needs a YAML file"),
        (["--config", "bomb.yaml"], "bomb.yaml, line 1 has &a0 or *a0; write out what it stands for"),
        (["--config", "twice.yaml"], "twice.yaml, line 3 has 'seed' a second time"),
        (["--config", "twice_inside.yaml"], "twice_inside.yaml, line 1 has 'A' a second time"),
        (["--config", "deep.yaml"], "deep.yaml, line 1 is more than 20 levels deep"),
        (["--config", "binary.yaml"], "binary.yaml is not UTF-8 (invalid start byte at byte 0)"),
    ):
        code, stdout, stderr = run_recipe(script, *needed, *options)
        assert code == 2 and message in stderr.split(f"{script}.py: error: ")[1], (options, stderr)
        assert "Traceback" not in stderr and not stdout
    assert sorted(tmp_path.iterdir()) == before
