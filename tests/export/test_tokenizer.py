import ftfy
import numpy as np
import pytest
from ftfy import TextFixerConfig
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from crossmost.errors import InputError
from crossmost.export.tokenizer import write_tokenizer
from crossmost.models.clip import import_open_clip
from crossmost.models.text_tower import PROMPTS, text_tokenizer
from crossmost.runtime.text_encoder import clean

TEMPLATES = ("{}", "a photo of a {}.", "itap of my {}!", "There's THE {} in the scene.")
# What the file and the runtime do of ftfy's cleaning; entities come after it.
KEPT = TextFixerConfig(
    unescape_html="auto",
    remove_terminal_escapes=False,
    fix_encoding=False,
    fix_c1_controls=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=True,
    fix_line_breaks=True,
    fix_surrogates=True,
    remove_control_chars=True,
    normalization="NFC",
)


@pytest.fixture(scope="module")
def theirs():
    return text_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer("ViT-B-32", path)
    return Tokenizer.from_file(str(path))


def check_equal(written, theirs, texts):
    ids = [written.encode(clean(text)).ids for text in texts]
    np.testing.assert_array_equal(np.array(ids), theirs(texts).numpy())


def test_every_lvis_name_has_open_clips_ids(written, theirs, shared_data):
    with np.load(shared_data / "clip_text_vitb32.npz") as archive:
        names = archive["names"][archive["source"] == "lvis"].tolist()
    assert len(names) == 1203
    for template in TEMPLATES:
        check_equal(written, theirs, [template.replace("{}", name) for name in names])


def test_every_prompt_has_open_clips_ids(written, theirs):
    names = (
        "night_stand",
        "Floor Lamp",
        "T-shirt",
        "yoke_(animal_equipment)",
        "10-gallon hat",
        "crème brûlée",
    )
    check_equal(written, theirs, [prompt.replace("{}", name) for prompt in PROMPTS for name in names])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\r\n",
        "O’Neil’s “cafe\u0301” ʼtwas",  # curled quotes, a combining accent
        "it's they'RE i'll 'd 'ſ",
        "fish &amp; chips &amp;amp; &lt;b&gt; caf&eacute; &#39;s &rsquo;",
        "100,000 m² ½ Ⅷ ٣ x1y2",
        "😀 👩‍👩‍👧 日本語 Ελλάδα İstanbul STRASSE ẞ",
        "a\x00b \ufeffc \x1bd",
        "zero\u200bwidth no\u00a0break line\u2028end",
        "\ud83d\ude00 \ud83d lone",  # surrogates, as a file name or an argument may bring them
        "<start_of_text> mug <END_OF_TEXT> bowl",
        "long " * 200,
        "x" * 5000,
        "a " * 74 + "b",
        "a " * 75 + "b",
        "!" * 300,
    ],
)
def test_unusual_text_has_open_clips_ids(written, theirs, text):
    check_equal(written, theirs, [text])


any_text = st.text(st.characters(exclude_categories=["Cn"], exclude_characters="Σ\u0345"), max_size=120)
latin = st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cc"]), max_size=200)
pieces = st.lists(
    st.sampled_from(
        ["mug", "Night_Stand", "'s", "'LL", "n't", "é", "e\u0301", "ñ", "42", "3.5", "½", "--", "...", "?!", "(", ")",
         "_", "-", "/", "&amp;", "&#233;", "&quot;", "“", "’", "😀", "漢字", " ", "  ", "\t", "\n", "\u00a0", "\u3000"]
    )
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(any_text, latin, pieces))
@example("ŉ")
def test_any_text_that_ftfy_would_not_repair_has_open_clips_ids(written, theirs, text):
    assume(ftfy.fix_text(text) == ftfy.fix_text(text, KEPT))
    check_equal(written, theirs, [text])


def test_context_length_is_the_models(tmp_path):
    write_tokenizer("PE-Core-T-16-384", tmp_path / "tokenizer.json")
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["mug", "long " * 200]
    ids = [made.encode(text).ids for text in texts]
    assert len(ids[0]) == 32
    np.testing.assert_array_equal(ids, text_tokenizer("PE-Core-T-16-384")(texts).numpy())


@pytest.mark.parametrize("options", [{"clean": "canonicalize"}, {"reduction_mask": "simple"}])
def test_a_tokenizer_that_does_something_else_is_refused(options, monkeypatch, tmp_path):
    open_clip = import_open_clip()
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: open_clip.SimpleTokenizer(**options))
    with pytest.raises(InputError, match=r"CLIP's own tokenizer for 'ViT-B-32'.*leave out --text-encoder"):
        write_tokenizer("ViT-B-32", tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_kind_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(import_open_clip(), "get_tokenizer", lambda name: object())
    with pytest.raises(InputError, match="found object"):
        write_tokenizer("ViT-B-32", tmp_path / "tokenizer.json")
