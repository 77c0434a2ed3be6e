import re
from html.parser import HTMLParser

import pytest
from report_samples import ENDINGS, RECOVERED, failed, passed

from compressor.errors import SourceError, UsageError
from compressor.report.html import facts_of, render_html, segments, typeset, write_html
from compressor.report.record import validate

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Texts, tags and attributes; fails where tags are not balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("ending", ENDINGS)
def test_pages_are_balanced_alone_and_without_scripts(ending):
    page = Reader(render_html(ENDINGS[ending]()))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "img", "form"}
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:,")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in render_html(ENDINGS[ending]())
    assert "url(http" not in render_html(ENDINGS[ending]())


FIRST = {
    "passed": "Passed 2.91 M → 0.35 M parameters (12.0 %)",
    "failed": "Failed Nothing was exported. 2.91 M",
    "undecided": "Undecided Too few samples to tell",
    "exact": "Passed 2.91 M → 0.35 M parameters (12.0 %) outputs moved by 3.1e-15 of their spread",
    "nothing": "Nothing to compress every unit is needed. The bundle is the original.",
    "analyzed": "Analyzed 1,312 units: 410 needed",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_verdict_comes_first(ending):
    text = Reader(render_html(ENDINGS[ending]())).text
    start = text.index("compressor report mlp ")
    assert text[start:].startswith(f"compressor report mlp {FIRST[ending]}")


def test_a_failed_network_that_was_kept_is_said_so_first():
    text = Reader(render_html(failed(keep_failed=True))).text
    assert "Failed The verdict failed, and the network was exported all the same" in text
    assert "Nothing was exported" not in text


def test_the_numbers_are_there():
    text = Reader(render_html(passed())).text
    expected = [
        "2,911,754 349,410 12.0 %", "2.91 M 0.35 M 12.0 %", "class 6: 71.9 → 69.8", "1.40 MB",
        "4.21 ms 1.13 ms 26.8 %",
        "difference −0.39 points [−0.49, −0.29] at 95 %", "allowed −1.00", "5000 samples",
        "341,007 parameters", "12.0 % selected 27.2 % 0.0167 −0.35 −0.39 [−0.59, −0.19] passed",
        "310 of 1,024 kept", "96, frozen: attention heads", "attention.query attention heads",
        "rank correlation of predicted and measured loss 0.93", "97.42", "0.0123", "opset 18", "2.3e-06",
        "same answers as the network 99.95 %", "model.onnx 1.130 1.050 0.268 [0.261, 0.274] faster",
        "batch 32, 2 thread(s), 200 interleaved rounds",
        "aa11" * 16, "bb22" * 16, "cc33" * 16, "judge data (5,000)", "torch 2.14.1", "seed 0",
        "compressor compress nets.py:mlp --data fashion-mnist", "Samples suffice for 900 of 1,024",
        "has been used 2 times", "search 1 min 15 s", "repeated 0.99", "batch is dynamic", "ratio 95 % interval",
    ]  # fmt: skip
    assert [words for words in expected if words not in text] == []


def test_bars_fill_the_group_and_speak():
    group = validate(passed()).groups[2]
    parts = segments(group)
    assert [part[:2] for part in parts] == [
        ("needed", 300), ("removable", 500), ("repeated", 100), ("dependent", 80), ("silent", 44)
    ]  # fmt: skip
    assert sum(part[2] for part in parts) == pytest.approx(100)
    assert 'aria-label="300 needed, 500 removable, 100 repeated, 80 dependent, 44 silent"' in render_html(passed())
    assert segments(validate(passed()).groups[3]) == [("frozen", 96, 100.0)]


def test_hostile_texts_stay_texts(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=a>{{ 7*7 }}&amp;\x1b\ud800'
    record = passed(name=evil, command=evil, warnings=[evil], nothing_to_do=None, created=evil, device=evil)
    record["groups"][0] |= {"name": evil, "producers": [evil], "consumers": [evil]}
    record["groups"][3]["frozen"] = evil
    record["coverage"] |= {"text": evil, "uncovered": {evil: evil}}
    record["verdict"] = record["verdict"] | {"metric": evil}
    record["onnx"] |= {"path": evil, "notes": [evil]}
    record["onnx"]["latency"]["files"][1]["path"] = evil
    for key in (
        "options",
        "versions",
        "machine",
        "source",
        "thresholds",
        "align",
        "recipe",
        "fidelity",
    ):
        record[key] = {evil: evil}
    record["seconds"] = {evil: 1.0}
    record["recover"] = {**RECOVERED, "measure": evil, "budget": evil, "stopped": evil}
    record["data"] |= {"calibrate": evil, "described": {evil: evil}, "counts": {"calibrate": evil}}
    write_html(record, tmp_path / "page.html")
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in page.text
    assert page.text.count("<script>alert(1)</script>") > 20


def test_two_groups_of_one_name_have_their_own_bars():
    record = passed()
    record["groups"][1]["name"] = record["groups"][0]["name"]
    labels = [a.get("aria-label") for _, a in Reader(render_html(record)).tags if a.get("class") == "bar"]
    assert len(set(labels)) == 4


def test_same_record_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_html(passed(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_page_is_whole_or_not_there(tmp_path):
    with pytest.raises(SourceError):
        write_html({"name": "x"}, tmp_path / "page.html")
    with pytest.raises(UsageError):
        write_html(passed(), tmp_path / "none" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_page_fits_light_dark_phone_and_paper():
    page = render_html(passed())
    for words in ("prefers-color-scheme: dark", "@media print", "width=device-width", 'lang="en"'):
        assert words in page


@pytest.mark.parametrize("theme", [0, 1])
def test_words_have_contrast(theme):
    """At least 4.5 : 1 for text on paper and on sheets (WCAG 2.2, 1.4.3)."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    colors = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", render_html(passed()), re.S)[theme]))
    for ink in ("ink", "muted", "accent", "good", "bad", "unsure"):
        for ground in ("paper", "sheet"):
            low, high = sorted([luminance(colors[ink]), luminance(colors[ground])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_facts_are_flat_short_and_not_empty():
    assert facts_of({"a": {"b": 1.23456789, "c": None}, "d": [], "e": "x" * 500}) == [
        ("a.b", "1.23457"),
        ("e", "x" * 160 + " ..."),
    ]


def test_typesetting_leaves_names_alone():
    assert typeset("1 -> 2, [-0.49, -0.29], e-06, fashion-2") == "1 → 2, [−0.49, −0.29], e-06, fashion-2"
