"""The configuration: four places, one order, errors that name the place and the remedy."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from backchannel.config import ConfigError, ServeConfig
from backchannel.listen import Address
from backchannel.rpc.settings import engines


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("BACKCHANNEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def toml(folder: Path, text: str) -> Path:
    path = folder / "backchannel.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    config = ServeConfig.load({})
    assert config.listen == "127.0.0.1:50051"
    assert config.log == f"sqlite:///{tmp_path}/state/backchannel/sessions.db"
    assert not config.anonymous
    assert config.engine == ()


def test_flags_win_over_variables_and_these_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'listen = "127.0.0.1:1"\nmodel = "scripted/echo"\ndrain_grace_s = 1\n'
    path = toml(tmp_path, text)
    monkeypatch.setenv("BACKCHANNEL_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("BACKCHANNEL_MODEL", "scripted/count")
    config = ServeConfig.load({"listen": "127.0.0.1:3"}, path)
    assert (config.listen, config.model, config.drain_grace_s) == (
        "127.0.0.1:3",
        "scripted/count",
        1.0,
    )


def test_lists_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml(
        tmp_path,
        'engine = ["scripted", "llama"]\n[engine_options.llama]\nparallel = 2\n'
        "[sessions]\nheartbeat_s = 5\n[sessions.retention]\nmax_events = 10\n",
    )
    config = ServeConfig.load({}, path)
    assert config.engine == ("scripted", "llama")
    assert config.engine_options == {"llama": {"parallel": 2}}
    assert config.sessions.heartbeat_s == 5
    assert config.sessions.retention.max_events == 10
    assert config.sessions.max_readers == 64
    monkeypatch.setenv("BACKCHANNEL_ENGINE", "scripted, other")
    monkeypatch.setenv("BACKCHANNEL_SESSIONS__MAX_LIVE", "7")
    config = ServeConfig.load({}, path)
    assert config.engine == ("scripted", "other")
    assert (config.sessions.max_live, config.sessions.heartbeat_s) == (7, 5)


def test_engines_and_aliases_from_a_file(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        'engine = ["vllm", "spare"]\nmodel = "fast"\n'
        '[model_aliases]\nfast = ["vllm/Qwen/Qwen3-8B", "spare/echo"]\nlone = "spare/echo"\n'
        '[engine_options.vllm]\nadapter = "openai"\nmax_parallel = 8\n'
        '[engine_options.spare]\nadapter = "scripted"\n',
    )
    config = ServeConfig.load({}, path)
    assert config.model_aliases == {
        "fast": ("vllm/Qwen/Qwen3-8B", "spare/echo"),
        "lone": ("spare/echo",),
    }
    assert config.engine_options["vllm"] == {"adapter": "openai", "max_parallel": 8}
    assert config.model == "fast"


def test_engines_and_aliases_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ENGINE": "vllm,spare",
        "ENGINE_OPTIONS__VLLM__ADAPTER": "openai",
        "ENGINE_OPTIONS__VLLM__BASE_URL": "http://127.0.0.1:8000/v1",
        "ENGINE_OPTIONS__VLLM__MODELS": '["Qwen/Qwen3-8B"]',
        "ENGINE_OPTIONS__SPARE__ADAPTER": "scripted",
        "MODEL_ALIASES__FAST": "vllm/Qwen/Qwen3-8B, spare/echo",
        "MODEL": "fast",
    }.items():
        monkeypatch.setenv(f"BACKCHANNEL_{name}", value)
    config = ServeConfig.load({})
    assert config.engine_options == {
        "vllm": {
            "adapter": "openai",
            "base_url": "http://127.0.0.1:8000/v1",
            "models": ["Qwen/Qwen3-8B"],
        },
        "spare": {"adapter": "scripted"},
    }
    assert config.model_aliases == {"fast": ("vllm/Qwen/Qwen3-8B", "spare/echo")}


def test_the_settings_in_the_documentation_say_the_same_in_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text("utf-8")
    (in_toml,) = [block for block in _blocks(text, "toml") if "[model_aliases]" in block]
    (in_variables,) = [block for block in _blocks(text, "sh") if "MODEL_ALIASES" in block]
    from_file = ServeConfig.load({}, toml(tmp_path, in_toml))
    for line in in_variables.splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    from_variables = ServeConfig.load({})
    assert from_variables.model == from_file.model == "fast"
    assert from_variables.engine == from_file.engine
    assert from_variables.model_aliases == from_file.model_aliases
    registries = [engines(config) for config in (from_file, from_variables)]
    assert registries[0].settings == registries[1].settings


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_a_default_that_is_no_alias_is_told_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BACKCHANNEL_MODEL_ALIASES__FAST", "scripted/echo")
    with pytest.raises(ConfigError, match=r"--model: .*there are fast.*found 'slow'"):
        ServeConfig.load({"model": "slow"})


@pytest.mark.parametrize(
    ("variables", "opened"),
    [
        ({}, ["llama", "scripted"]),
        ({"ENGINE": "scripted"}, ["scripted"]),
        ({"ENGINE": "a,llama", "ENGINE_OPTIONS__B__ADAPTER": "x"}, ["a", "llama", "scripted"]),
        # What somebody tells of comes first.
        ({"ENGINE_OPTIONS__A__ADAPTER": "x"}, ["a", "llama", "scripted"]),
        ({"ENGINE_OPTIONS__SCRIPTED__MAX_PARALLEL": "9"}, ["llama", "scripted"]),
    ],
)
def test_which_engines_are_opened(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], opened: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"BACKCHANNEL_{name}", value)
    registry = engines(ServeConfig.load({}))
    assert list(registry.settings) == opened
    whole = variables.get("ENGINE_OPTIONS__SCRIPTED__MAX_PARALLEL", 0)
    assert registry.settings["scripted"].max_parallel == int(whole)


def test_an_upstreams_model_may_be_called_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKCHANNEL_ENGINE_OPTIONS__CPP__ADAPTER", "openai")
    config = ServeConfig.load({"model": "cpp/models/qwen.gguf"})
    assert (config.model, config.model_file) == ("cpp/models/qwen.gguf", None)


def test_it_is_frozen() -> None:
    config = ServeConfig.load({})
    with pytest.raises(ValidationError):
        config.listen = "0.0.0.0:1"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"listen": "nonsense"}, ["--listen", "host:port", "'nonsense'"]),
        ({"listen": "127.0.0.1:99999"}, ["--listen", "65535"]),
        ({"listen": "::1:5"}, ["--listen", "[ipv6]:port"]),
        ({"listen": "unix:relative"}, ["--listen", "unix:/"]),
        ({"listen": "0.0.0.0:50051"}, ["listen", "0.0.0.0:50051", "--anonymous", "127.0.0.1"]),
        ({"listen": "[::]:50051"}, ["--anonymous"]),
        ({"listen": "example.org:50051"}, ["--anonymous"]),
        ({"drain_grace_s": -1}, ["--drain-grace", "greater than or equal to 0", "-1"]),
        ({"log": "somewhere"}, ["--log", "sqlite:///", "'somewhere'"]),
        ({"model": "/nothing/there.gguf"}, ["--model", "no such file", "there.gguf"]),
        ({"model": "echo"}, ["--model", "engine/name", "'echo'"]),
        ({"log_level": "chatty"}, ["--log-level", "'debug'"]),
    ],
)
def test_wrong_flags(flags: dict[str, object], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeConfig.load(flags)
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "example.org:50051"])
def test_strangers_come_in_by_choice(listen: str) -> None:
    assert ServeConfig.load({"listen": listen, "anonymous": True}).listen == listen


@pytest.mark.parametrize(
    "listen", ["127.0.0.2:1", "localhost:1", "[::1]:1", "unix:/run/backchannel.sock"]
)
def test_this_machine_needs_no_choice(listen: str) -> None:
    assert str(ServeConfig.load({"listen": listen}).address) == listen


@pytest.mark.parametrize(
    ("listen", "dial"),
    [
        ("0.0.0.0:7", "127.0.0.1:7"),
        ("[::]:7", "[::1]:7"),
        ("127.0.0.1:7", "127.0.0.1:7"),
        ("unix:/a.sock", "unix:/a.sock"),
    ],
)
def test_what_to_dial(listen: str, dial: str) -> None:
    assert str(Address.parse(listen).from_here) == dial


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKCHANNEL_DRAIN_GRACE_S", "soon")
    with pytest.raises(ConfigError, match=r"BACKCHANNEL_DRAIN_GRACE_S: .*found 'soon'"):
        ServeConfig.load({})


def test_a_wrong_line_of_the_file_is_named(tmp_path: Path) -> None:
    path = toml(tmp_path, 'max_calls = "many"\n')
    with pytest.raises(ConfigError, match=f"max_calls in {path}"):
        ServeConfig.load({}, path)


def test_a_setting_there_is_not(tmp_path: Path) -> None:
    path = toml(tmp_path, 'lisen = "127.0.0.1:1"\n')
    with pytest.raises(ConfigError, match=r"no setting is called lisen; there are .*listen"):
        ServeConfig.load({}, path)


def test_a_limit_there_is_not_or_that_is_no_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, "[sessions]\nmax_lives = 7\n")
    with pytest.raises(ConfigError, match=rf"^{path}: no setting is called sessions.max_lives;"):
        ServeConfig.load({}, path)
    path = toml(tmp_path, "[sessions.retention]\nmax_events = 'all'\n")
    with pytest.raises(ConfigError, match=rf"^sessions.retention.max_events in {path}: "):
        ServeConfig.load({}, path)
    monkeypatch.setenv("BACKCHANNEL_SESSIONS__MAX_LIVE", "some")
    with pytest.raises(ConfigError, match=r"^BACKCHANNEL_SESSIONS__MAX_LIVE: .*found 'some'"):
        ServeConfig.load({})


def test_variables_that_set_nothing() -> None:
    variables = {
        "BACKCHANNEL_DRAIN_GRACE": "5",
        "BACKCHANNEL_NONSENSE": "x",
        "BACKCHANNEL_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        "BACKCHANNEL_SESSIONS__MAX_LIVE": "7",
        "BACKCHANNEL_LOG": "memory",
        "backchannel_model": "scripted/echo",
        # The commands' own, and what Kubernetes tells the pods beside a service of this name.
        "BACKCHANNEL_CONFIG": "a.toml",
        "BACKCHANNEL_SERVER": "127.0.0.1:1",
        "BACKCHANNEL_PORT": "tcp://10.0.0.1:50051",
        "BACKCHANNEL_PORT_50051_TCP_ADDR": "10.0.0.1",
        "BACKCHANNEL_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    assert ServeConfig.unknown_variables(variables) == [
        ("BACKCHANNEL_DRAIN_GRACE", "BACKCHANNEL_DRAIN_GRACE_S"),
        ("BACKCHANNEL_NONSENSE", None),
        ("BACKCHANNEL_OTLP_ENDPOINT", "BACKCHANNEL_TELEMETRY__OTLP_ENDPOINT"),
    ]


def test_an_options_name_in_the_file_is_led_to_its_group(tmp_path: Path) -> None:
    path = toml(tmp_path, 'otlp_endpoint = "http://127.0.0.1:4317"')
    with pytest.raises(ConfigError, match=r"there is telemetry\.otlp_endpoint"):
        ServeConfig.load({}, path)


def test_several_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeConfig.load({"log": "x", "drain_grace_s": -1})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["listen = ", "\x00"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(ConfigError, match=r"--config: .*backchannel.toml is not TOML"):
        ServeConfig.load({}, path)


def test_a_file_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read .*: No such file"):
        ServeConfig.load({}, tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MAX_LIVE", "-5", "max_live must be at least 1"),
        ("MAX_READERS", "0", "max_readers must be at least 1"),
        ("HEARTBEAT_S", "-1", "heartbeat_s must be at least 0"),
        ("SWEEP_S", "nan", "sweep_s must be at least 0"),
    ],
)
def test_limits_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv(f"BACKCHANNEL_SESSIONS__{name}", value)
    with pytest.raises(ConfigError, match=why):
        ServeConfig.load({})
