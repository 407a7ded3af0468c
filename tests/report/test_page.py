"""The page says what was compared, shows it, and needs nothing else."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from checks import refuses
from viditq.errors import InputError
from viditq.evaluation import Comparison, Contest, ladder_lineup, shootout_lineup
from viditq.evaluation.samples import SampleStore
from viditq.report import write_report


class Page(HTMLParser):
    """Tags with their attributes, and the text; fails on what is not closed."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str, class_: str = "") -> list[dict]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and class_ in (attributes.get("class") or "")
        ]

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_images(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=8)
    page = read(write_report(comparison, tmp_path))
    assert page.says("8 images each, same prompts, same seeds, same noise")
    assert page.says("Nearest to float")
    for result in comparison.results:
        assert page.says(result.name)
        assert page.says(f"{result.psnr_db:.1f}")
    shown = len(page.all("img", "sample"))
    assert shown % 6 == 0  # float, bf16, four quantized
    assert 5 * 6 <= shown <= 6 * 6
    assert len(page.all("img", "difference")) == shown * 5 / 6
    assert page.all("video") == []
    assert page.says("Error of each layer")
    assert page.says("before and after balancing")
    assert page.says(comparison.provenance.command)


def test_videos_play_inline(make_comparison, tmp_path):
    page = read(write_report(make_comparison(tmp_path, kind="video", num=2), tmp_path))
    films = page.all("video")
    assert len(films) == 2 * 6
    for film in films:
        assert {"autoplay", "loop", "muted", "playsinline"} <= set(film)
        assert film["src"].startswith("data:video/mp4;base64,")
    assert page.says("flow difference")


LINEUPS = {
    "shootout": shootout_lineup("w4a8"),
    "ladder": ladder_lineup("paper", "w4a8"),
}


@pytest.fixture(params=LINEUPS)
def contest(request, make_comparison, tmp_path):
    """A contest of ten or so with its comparison."""
    lineup = LINEUPS[request.param]
    names = tuple(recipe.name for recipe in lineup.recipes)
    comparison = make_comparison(tmp_path, num=4, names=names)
    return Contest.of(lineup, comparison), comparison


def test_a_contest(contest, tmp_path):
    contest, comparison = contest
    path = write_report(comparison, tmp_path, contest)
    page = read(path)
    ladder = contest.kind == "ladder"
    assert page.says("What each step is worth" if ladder else "Who is nearest to float")
    figure = re.search(r"<svg[^>]*PSNR to float of each recipe.*?</svg>", path.read_text("utf-8"))
    texts = re.findall(r'<text[^>]*class="([a-z ]*row)"[^>]*>(.*?)</text>', figure.group())
    rows = [contest.float_bf16, *contest.rows]
    if not ladder:
        rows.sort(key=lambda row: -row.psnr_db)
        assert contest.absent[0] in " ".join("".join(page.text).split())
    expected = []
    for row in rows:
        gain = row.gain and f"{row.gain.psnr_db:+.1f} ["
        expected += [row.name.replace("_", " "), f"{row.weight_bits:.2f}", gain or ""]
    assert len(texts) == len(expected)
    assert all(text.startswith(start) for (_, text), start in zip(texts, expected, strict=True))
    bold = [text for kind, text in texts if "strong" in kind and text]
    assert bold == ([] if ladder else ["w4a8"])


def test_many_pipelines_stand_in_lines_of_one_length(contest, tmp_path):
    contest, comparison = contest
    page = read(write_report(comparison, tmp_path, contest))
    count = len(comparison.results) + 2
    for box in page.all("div", "pictures"):
        assert box["style"] == {12: "--count: 6", 13: "--count: 7"}[count]
    assert page.says("Shown are those nearest to float")
    nearest = sorted(comparison.results, key=lambda result: -result.psnr_db)[:6]
    coloured = {f"{result.name} {result.psnr_db:.1f}" for result in nearest}
    labels = {" ".join(text.split()) for text in page.text}
    shown = {f"{one.name} {one.psnr_db:.1f}" for one in comparison.results} & labels
    assert shown == coloured


def test_without_a_contest_there_is_no_table_of_winners(make_comparison, tmp_path):
    page = read(write_report(make_comparison(tmp_path, num=1), tmp_path))
    assert not page.says("Who is nearest to float")


def test_nothing_is_fetched(make_comparison, tmp_path):
    path = write_report(make_comparison(tmp_path), tmp_path)
    page = read(path)
    for _, attributes in page.tags:
        for key in ("src", "href", "action", "poster", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#"))
    content = path.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", content)


def test_several_comparisons_on_one_page(make_comparison, tmp_path):
    pair = [make_comparison(tmp_path / kind, kind=kind, num=2) for kind in ("image", "video")]
    page = read(write_report(pair, tmp_path))
    assert [section["id"] for section in page.all("section")] == ["c1", "c2"]
    assert [link["href"] for link in page.all("a")] == ["#c1", "#c2"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert (tmp_path / "sheet.png").is_file()


def test_what_is_not_known_is_left_out(make_comparison, tmp_path):
    comparison = make_comparison(
        tmp_path, num=1, names=("w8a8",), judged=False, layers=False, bf16=False
    )
    page = read(write_report(comparison, tmp_path))
    assert not page.says("judge reads")
    assert not page.says("Error of each layer")
    assert not page.says("balancing")
    assert not page.says("bf16;")
    assert not page.says("None")
    assert len(page.all("img", "sample")) == 2


def test_layers_without_steps_have_no_spread(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=1, names=("w8a8",))
    sidecar = tmp_path / "layers" / "w8a8.json"
    document = json.loads(sidecar.read_text())
    for layer in document["layers"].values():
        layer["steps"], layer["sqnr_db"] = layer["steps"][:1], None
    document["layers"]["transformer_blocks.0.ff.net.2"]["sqnr_db"] = 20.0
    sidecar.write_text(json.dumps(document))
    page = read(write_report(comparison, tmp_path))
    assert page.says("Error of each layer")
    assert not page.says("before and after balancing")


def test_names_and_prompts_are_escaped(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=1, names=("w8a8",))
    evil = '<script>alert("x")</script>'
    row = comparison.float_.samples[0].model_copy(update={"prompt": evil})
    float_ = comparison.float_.model_copy(update={"samples": (row,)})
    page = read(
        write_report(
            comparison.model_copy(update={"float_": float_, "pipeline": evil}).at(tmp_path),
            tmp_path,
        )
    )
    assert page.says(evil)
    assert len(page.all("script")) == 1


def test_the_worst_sample_is_shown(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=12, names=("w8a8",))
    worst = min(comparison.results[0].samples, key=lambda row: row.psnr_db)
    page = read(write_report(comparison, tmp_path))
    assert page.says("the sample that w8a8 changed most, of 12")
    assert page.says(f"seed {worst.seed}")


def test_from_files_alone(make_comparison, tmp_path):
    make_comparison(tmp_path, num=2)
    assert write_report(Comparison.load(tmp_path), tmp_path).is_file()


def test_large_pictures_are_made_smaller(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=1, names=("w8a8",), bf16=False)
    for name in ("float", "w8a8"):
        store = SampleStore(tmp_path / "samples" / name, ("",))
        store.write(0, torch.rand(1100, 900, 3))
    page = read(write_report(comparison, tmp_path))
    [first, *_] = page.all("img", "sample")
    assert (first["width"], first["height"]) == ("300", "366")
    assert first["src"].startswith("data:image/webp;base64,")


def test_damaged_files_are_named(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=2)
    (tmp_path / "layers" / "w8a8.json").write_text("{}")
    with refuses(InputError, "w8a8.json"):
        write_report(comparison, tmp_path)
    (tmp_path / "layers" / "w8a8.json").unlink()
    (tmp_path / "samples" / "w8a8" / "0001.safetensors").write_bytes(b"no")
    with refuses(InputError, "0001.safetensors"):
        write_report(comparison, tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}'])
def test_what_is_not_a_comparison(tmp_path, content):
    (tmp_path / "comparison.json").write_text(content)
    with refuses(InputError, "comparison.json", "not a comparison"):
        Comparison.load(tmp_path)
    with refuses(InputError, "no comparison"):
        Comparison.load(tmp_path / "nowhere")
