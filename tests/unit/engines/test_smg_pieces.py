"""What the adapter `smg` is made of: files, templates, tokens."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import io
import json
import random
import time
import zipfile
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from backchannel.engines.protocol import Prompt
from backchannel.engines.smg.files import BadFilesError, TokenizerFiles
from backchannel.engines.smg.template import ChatTemplate, RefusedConversationError
from backchannel.engines.smg.tokenizer import Detokenizer, ModelTokenizer
from tests.support.smg_peer import TEMPLATE, archive, small_tokenizer, tokenizer_files
from tests.unit.engines.support import CALCULATOR, assistant, call, result, user

# --- files


def of(data: bytes) -> TokenizerFiles:
    return TokenizerFiles.of_archive(data, hashlib.sha256(data).hexdigest())


def test_an_archive_gives_the_files_that_are_known() -> None:
    data = archive({"config.json": '{"eos_token_id": 3}', "model.safetensors": "x" * 100})
    files = of(data)
    assert set(files.contents) == {"config.json"}
    assert files.json("config.json") == {"eos_token_id": 3}
    assert files.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/etc/config.json", "a/config.json", "..\\config.json", "./config.json"],
)
def test_a_path_in_an_archive_leads_nowhere(name: str) -> None:
    assert of(archive({name: "{}"})).contents == {}


def test_an_archive_that_swells_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backchannel.engines.smg.files.MOST_FILE_BYTES", 100_000)
    swollen = archive({"tokenizer.json": "0" * 10_000_000})
    assert len(swollen) < 20_000
    with pytest.raises(BadFilesError, match="too large"):
        of(swollen)
    assert of(archive({"vocab.json": "0" * 10_000_000})).contents == {}


def test_an_archive_that_lies_about_its_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backchannel.engines.smg.files.MOST_FILE_BYTES", 100_000)
    data = bytearray(archive({"tokenizer.json": "0" * 1_000_000}))
    size = (1_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    with pytest.raises(BadFilesError):
        of(bytes(data.replace(size, (10).to_bytes(4, "little"))))


def test_a_file_that_is_there_twice_counts_once() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("config.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            zipped.writestr("config.json", "[]")
    assert of(buffer.getvalue()).contents == {"config.json": b"{}"}


@pytest.mark.parametrize("cut", [0, 1, 30, -30, -1])
def test_half_an_archive_is_refused(cut: int) -> None:
    data = archive({"tokenizer.json": json.dumps(list(range(1000)))})
    with pytest.raises(BadFilesError):
        of(data[:cut])


def test_an_archive_with_noise_in_it_is_refused_or_read() -> None:
    data = archive(tokenizer_files(small_tokenizer()))
    noise = random.Random(7)
    for _ in range(200):
        broken = bytearray(data)
        broken[noise.randrange(len(broken))] ^= 1 << noise.randrange(8)
        try:
            of(bytes(broken))
        except BadFilesError:
            continue


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadFilesError, match="is no folder"):
        TokenizerFiles.of_folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    files = TokenizerFiles.of_folder(tmp_path)
    with pytest.raises(BadFilesError, match=r"config\.json is not a JSON object"):
        files.json("config.json")
    with pytest.raises(BadFilesError, match="not UTF-8"):
        files.text("chat_template.jinja")
    assert files.json("tokenizer_config.json") == {}
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(BadFilesError, match="cannot be read"):
        TokenizerFiles.of_folder(tmp_path)


# --- templates


def render(source: str, *messages: object, **variables: object) -> str:
    prompt = Prompt("m", "", messages or [user("Hi")])  # type: ignore[arg-type]
    return ChatTemplate(source, variables).render(prompt, {})


def test_what_templates_of_transformers_expect() -> None:
    noon = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ {'b': '<é>', 'a': 1} | tojson }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{% if tools is none and documents is none and add_generation_prompt %}!{% endif %}",
        {"bos_token": "<s>"},
        now=lambda: noon,
    )
    prompt = Prompt("m", "", [user("one"), assistant("two")])
    assert template.render(prompt, {}) == '<s>23 Nov 2026 {"b": "<é>", "a": 1}one!'


def test_blocks_leave_no_lines() -> None:
    assert (
        render("{% for m in messages %}\n  {% if m %}\n{{ m.content }}{% endif %}\n{% endfor %}")
        == "Hi"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_reaches_nothing(source: str) -> None:
    with pytest.raises(RefusedConversationError) as caught:
        render(source)
    assert "Hi" not in str(caught.value)


def test_a_template_says_why_it_refuses() -> None:
    with pytest.raises(RefusedConversationError, match="no system prompt, please"):
        render("{{ raise_exception('no system prompt, please') }}")


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% nothing %}", "x" * (2**20 + 1)])
def test_what_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(BadFilesError, match="template"):
        ChatTemplate(source, {})


def template_of(files: dict[str, str], source: str | None = None) -> ChatTemplate:
    contents = {name: text.encode() for name, text in files.items()}
    return ChatTemplate.of_files(TokenizerFiles(contents), {}, source)


def test_where_a_template_is_found() -> None:
    config = json.dumps(
        {
            "chat_template": [
                {"name": "default", "template": "d"},
                {"name": "tool_use", "template": "{{ tools }}"},
            ],
            "bos_token": {"content": "<s>"},
        }
    )
    files = {"tokenizer_config.json": config}
    assert template_of(files).source == "{{ tools }}"
    assert template_of(files).takes_tools
    files["chat_template.json"] = '{"chat_template": "j"}'
    assert template_of(files).source == "j"
    files["chat_template.jinja"] = "{{ bos_token }}f"
    assert template_of(files).render(Prompt("m", "", []), {}) == "<s>f"
    assert template_of(files, "mine").source == "mine"
    assert not template_of(files, "mine").takes_tools
    with pytest.raises(BadFilesError, match="no chat template"):
        template_of({"tokenizer_config.json": "{}"})


def test_arguments_are_objects_for_a_template() -> None:
    template = ChatTemplate(TEMPLATE, {})
    calls = [call("c", "calculator", '{"expression": "1+1"}'), call("d", "clock", "not JSON")]
    messages = [user("?"), assistant("", calls), result("c", "2"), result("d", "{}")]
    text = template.render(Prompt("m", "", messages, [CALCULATOR]), {})
    assert '{"name": "calculator", "arguments": {"expression": "1+1"}}' in text
    assert '{"name": "clock", "arguments": "not JSON"}' in text


# --- tokens


def model_tokenizer(tokenizer: Tokenizer, shown: tuple[str, ...] = ()) -> ModelTokenizer:
    files = {name: text.encode() for name, text in tokenizer_files(tokenizer).items()}
    return ModelTokenizer(TokenizerFiles(files), shown)


def said(tokenizer: ModelTokenizer, ids: list[int], prompt: str = "") -> list[str]:
    """The text with each token, and at the end."""
    detokenizer = Detokenizer(tokenizer, tokenizer.encode(prompt))
    return [*(detokenizer.feed(token_id) for token_id in ids), detokenizer.rest()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        "Grüße, 世界!",
        "👩‍👩‍👧‍👦🇩🇪e\u0301",
        " \n\t x  ",
        "a\ufffdb",
        "<tool_call>{}</tool_call>",
    ],
)
def test_tokens_become_the_text_they_were_made_of(text: str) -> None:
    tokenizer = model_tokenizer(small_tokenizer())
    pieces = said(tokenizer, tokenizer.encode(text), "<|im_start|>assistant\n")
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    tokenizer = model_tokenizer(small_tokenizer())
    ids = tokenizer.encode("a世")
    assert said(tokenizer, ids[:-1])[-1] == "\ufffd"
    assert "".join(said(tokenizer, ids[:-1])) == "a\ufffd"


def test_what_never_becomes_a_character_is_not_held_back_for_ever() -> None:
    tokenizer = model_tokenizer(small_tokenizer())
    half = tokenizer.encode("世")[0]
    pieces = said(tokenizer, [half] * 40)
    assert sum(map(len, pieces)) == 40
    assert all(len(piece) <= 8 for piece in pieces)


def test_control_tokens_are_not_said_unless_they_are_tags() -> None:
    bare = small_tokenizer()
    bare.add_special_tokens([AddedToken("<tool_call>", special=True)])
    ids = [
        bare.token_to_id(token) or 0 for token in ("<|im_start|>", "<tool_call>", "<|endoftext|>")
    ]
    assert "".join(said(model_tokenizer(bare), ids)) == ""
    assert "".join(said(model_tokenizer(bare, ("<tool_call>",)), ids)) == "<tool_call>"


def sentencepiece() -> Tokenizer:
    """A tokenizer like Llama 2's: a space belongs to the word after it, bytes are the rest."""
    words = ["<s>", "</s>", "<unk>", "▁Hello", "▁world", "▁", "!", "[/INST]"]
    vocab = {word: at for at, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_a_decoder_that_eats_the_first_space_eats_no_other() -> None:
    tokenizer = model_tokenizer(sentencepiece())
    hello, world, mark = 3, 4, 6
    assert "".join(said(tokenizer, [hello, world, mark, world])) == "Hello world! world"
    # After a prompt the space is the answer's.
    detokenizer = Detokenizer(tokenizer, [7, hello])
    assert detokenizer.feed(world) == " world"


def test_characters_of_byte_tokens_are_not_split() -> None:
    tokenizer = model_tokenizer(sentencepiece())
    ids = [3, *(8 + byte for byte in "世é".encode()), 4]
    pieces = said(tokenizer, ids)
    assert pieces == ["Hello", "", "", "世", "", "é", " world", ""]


async def test_the_event_loop_runs_on_while_a_long_text_is_made_into_tokens() -> None:
    tokenizer = model_tokenizer(small_tokenizer())
    begin = last = time.perf_counter()
    longest = 0.0
    encoding = asyncio.ensure_future(
        asyncio.to_thread(tokenizer.encode, "a word or two. " * 20_000)
    )
    while not encoding.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < (last - begin) / 2, "nothing else could run"


def test_what_ends_an_answer_is_said_in_several_files() -> None:
    bare = small_tokenizer()
    files = {name: text.encode() for name, text in tokenizer_files(bare).items()}
    files["generation_config.json"] = b'{"eos_token_id": [7, 8, "x"]}'
    tokenizer = ModelTokenizer(TokenizerFiles(files))
    end, text_end = bare.token_to_id("<|im_end|>"), bare.token_to_id("<|endoftext|>")
    assert tokenizer.stop_ids == {end, text_end, 7, 8}
    assert "".join(said(tokenizer, [7, 8])) == ""


@pytest.mark.parametrize("content", [b"{}", b"no", b'{"model": {"type": "X"}}'])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(BadFilesError, match=r"tokenizer\.json cannot be read"):
        ModelTokenizer(TokenizerFiles({"tokenizer.json": content}))
    with pytest.raises(BadFilesError, match="save_pretrained"):
        ModelTokenizer(TokenizerFiles({}))


def test_a_long_text_is_not_cut_by_the_tokenizers_own_limit() -> None:
    bare = small_tokenizer()
    bare.enable_truncation(10)
    bare.enable_padding(length=64)
    tokenizer = model_tokenizer(bare)
    assert tokenizer.decode(tokenizer.encode("a " * 50)) == "a " * 50
    assert len(tokenizer.encode("a")) == 1
