"""Reading `consort.toml`: what is written is read, and every mistake is told at once, with its line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.config import Config, DeviceConfig, ModelConfig, TuneConfig
from consort.config_file import MODEL_FIELDS, PATH_FIELDS, dump_config, load_config, read_config
from consort.config_lines import key_lines
from consort.config_template import field_comments, render_template
from consort.errors import ConfigError
from consort.preflight import examine_file


def values(kind: Any, name: str) -> st.SearchStrategy[Any]:
    """Values of a field of any configuration dataclass, by its type hint."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field: values(hint, field) for field, hint in hints.items()})
    if get_origin(kind) is tuple:
        return st.lists(values(get_args(kind)[0], name), max_size=3).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if name in PATH_FIELDS | MODEL_FIELDS:  # a read configuration holds absolute paths
        return st.sampled_from(["", "/data/öffentlich", "/data/with space/#1"])
    return {
        str: st.text(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[kind]


configs = values(Config, "")


def written(folder: Path, text: str) -> Path:
    file = folder / "consort.toml"
    file.write_text(text, encoding="utf-8")
    return file


def mistakes_of(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, text), overrides)
    return str(caught.value)


@settings(max_examples=25, deadline=None)
@given(config=configs)
def test_a_dumped_configuration_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    file = written(tmp_path_factory.getbasetemp(), dump_config(config))
    assert load_config(file) == config


@settings(max_examples=25, deadline=None)
@given(config=configs)
def test_a_commented_configuration_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    file = written(tmp_path_factory.getbasetemp(), render_template(config, title="any"))
    assert load_config(file) == config


@settings(max_examples=25, deadline=None)
@given(config=configs)
def test_every_key_of_a_dump_has_a_line_that_holds_it(config: Config) -> None:
    for text in (dump_config(config), render_template(config, title="any")):
        lines = text.split("\n")
        for key, number in key_lines(text).items():
            named = [part for part in key.split(".") if not part.isdecimal()]
            assert named[-1] in lines[number - 1]


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()


def test_a_key_left_out_keeps_the_default_of_its_place_not_of_its_type(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, '[[devices]]\nname = "bank"\nslm.model = "a/b"\n'))
    assert config.devices == (
        DeviceConfig(name="bank", slm=dataclasses.replace(DeviceConfig().slm, model="a/b")),
    )
    assert config.devices[0].slm.trainable != ModelConfig().trainable


def test_an_unknown_key_names_its_line_and_the_nearest_key(tmp_path: Path) -> None:
    told = mistakes_of(tmp_path, 'name = "x"\n\n[cloud]\nmodel = "a/b"\nlearing_rate = 1e-3\n')
    assert told.startswith(f"{tmp_path}/consort.toml:5: ")
    assert 'unknown key "learing_rate" in [cloud]' in told
    assert 'did you mean "learning_rate"?' in told


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
seed = "one"
[tune]
rounds = 2.5
divergence = "forward-kl"
condition_in_token = 1
update_bits = 16
[[devices]]
name = 3
[devices.slm]
lora_rank = true
learning_rate = nan
[[devices]]
nmae = "b"
"""
    told = mistakes_of(tmp_path, text)
    for line, words in [
        (1, 'seed must be a whole number, not "one"'),
        (3, "tune.rounds must be a whole number, not 2.5"),
        (4, 'did you mean "forward_kl"?'),
        (5, "tune.condition_in_token must be true or false, not 1"),
        (6, "tune.update_bits must be one of 8, 32, not 16"),
        (8, "devices.name must be text in quotes, not 3"),
        (10, "devices.slm.lora_rank must be a whole number, not true"),
        (11, "devices.slm.learning_rate must be a finite number, not nan"),
        (13, 'did you mean "name"?'),
    ]:
        assert any(f":{line}: " in row and words in row for row in told.splitlines()), (line, words, told)
    assert told.startswith("9 mistakes")


def test_a_table_where_a_value_belongs_and_the_reverse_are_told(tmp_path: Path) -> None:
    told = mistakes_of(tmp_path, 'cloud = "a/b"\n[devices]\nname = "x"\n[name]\n')
    assert "cloud must be a table" in told
    assert "devices must be a list (write [[devices]])" in told
    assert "name must be text in quotes, not a table" in told


def test_text_that_is_not_toml_names_its_line(tmp_path: Path) -> None:
    assert f"{tmp_path}/consort.toml:2: not TOML" in mistakes_of(tmp_path, "seed = 1\nrounds = = 3\n")
    assert f"{tmp_path}/consort.toml:2: not TOML" in mistakes_of(tmp_path, "seed = 1\nseed = ")


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_config(tmp_path / "none.toml")
    assert "consort init" in caught.value.hint


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "consort.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8"):
        load_config(tmp_path / "consort.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "consort.toml").write_bytes(b"\xef\xbb\xbfseed = 4\r\n[tune]\r\nrounds = 3\r\n")
    assert load_config(tmp_path / "consort.toml").tune.rounds == 3


def test_paths_are_relative_to_the_file_and_overridden_ones_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "model").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = written(tmp_path / "there", 'public = "rows"\ncloud.model = "model"\nproxy.model = "owner/name"\n')
    config = load_config(file, ["devices=[{name='bank', data='mine'}]"])
    assert config.public == str(tmp_path / "there" / "rows")
    assert config.cloud.model == str(tmp_path / "there" / "model")
    assert config.proxy.model == "owner/name"  # a Hub id stays one
    assert config.devices[0].data == str(tmp_path / "here" / "mine")


TWO_DEVICES = '[[devices]]\nname = "bank"\n[[devices]]\nname = "clinic"\n'


@pytest.mark.parametrize("device", ["1", "clinic"])
def test_a_device_is_overridden_by_position_or_by_name(tmp_path: Path, device: str) -> None:
    config = load_config(written(tmp_path, TWO_DEVICES), [f"devices.{device}.slm.lora_rank=4"])
    assert config.devices[1].slm.lora_rank == 4
    assert config.devices[0].slm.lora_rank == DeviceConfig().slm.lora_rank


@pytest.mark.parametrize(
    ("override", "value"),
    [("name=3", "3"), ("name=true", "true"), ('name="a b"', "a b"), ("name=a = b", "a = b"), ("name=", "")],
)
def test_an_override_of_text_needs_no_quotes(tmp_path: Path, override: str, value: str) -> None:
    assert load_config(written(tmp_path, ""), [override]).name == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tune.ronds=3", 'did you mean "rounds"?'),
        ("rounds", "must read key=value"),
        (".=1", "must read key=value"),
        ("tune.rounds=many", "must be a whole number"),
        ("tune.rounds.x=1", "holds a single value"),
        ("devices.clinik.data=x", 'did you mean "clinic"?'),
        ("devices.2.data=x", 'no "2" in devices'),
        ("seed=1\nname=2", "must be a whole number"),
    ],
)
def test_a_wrong_override_is_told_as_it_was_written(tmp_path: Path, override: str, words: str) -> None:
    told = mistakes_of(tmp_path, TWO_DEVICES, override)
    assert words in told
    assert "--set" in told


@given(override=st.text())
def test_no_override_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, override: str) -> None:
    file = written(tmp_path_factory.getbasetemp(), TWO_DEVICES)
    read_config(file, [override])
    read_config(file, [f"tune.{override}=1", f"devices.{override}", f"cloud={override}"])


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "~"])
def test_no_text_breaks_a_path(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, dump_config(Config(public=text, cloud=ModelConfig(model=text), name=text)))
    assert load_config(file).name == text
    assert not examine_file(file, models=False).ok


def test_lines_are_found_past_long_strings_arrays_and_quoted_keys() -> None:
    text = '''\
a = """
[not.a.header]
b = 1 \\"""
"""
c = [ # ]
  "]", [1,
  2], ]
d = { e = 1, f = "}" }
"g h".i = 3
[[j]]
k = \'\'\'x
\'\'\'
[j.l]
m = 0
[[j]]
  k = 2
'''
    expected = {
        "a": 1,
        "c": 5,
        "d": 8,
        "g h": 9,
        "g h.i": 9,
        "j.0": 10,
        "j.0.k": 11,
        "j.0.l": 13,
        "j.0.l.m": 14,
    }
    assert key_lines(text) == expected | {"j.1": 15, "j.1.k": 16}


def test_a_comment_is_what_the_source_says_beside_the_field_and_lists_its_choices() -> None:
    comments = field_comments(TuneConfig)
    assert comments["batch_rows"] == "rows a step"
    assert comments["divergence"] == 'one of "forward_kl", "reverse_kl", "jsd"'
    assert comments["update_bits"].startswith("one of 8, 32; bits a parameter")
    assert '"specialised"; who speaks about labelled rows' in comments["labelled_teacher"]  # from above it


def test_each_key_is_explained_once() -> None:
    text = render_template(Config(devices=(DeviceConfig(), DeviceConfig())), title="any")
    assert text.count(field_comments(ModelConfig)["max_tokens"]) == 1


def test_an_endpoints_model_is_a_name_even_beside_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    far = 'base_url = "https://cloud.example/v1"'
    (tmp_path / "consort.toml").write_text(
        f'[serve.cloud]\nmodel = "cloud"\n{far}\n[[serve.edges]]\nmodel = "cloud"\n'
    )
    serve = load_config(tmp_path / "consort.toml").serve
    assert (serve.cloud.model, serve.edges[0].model) == ("cloud", str(tmp_path / "cloud"))
    moved = load_config(tmp_path / "consort.toml", ["serve.cloud.model=./cloud"]).serve
    assert moved.cloud.model == "./cloud"
