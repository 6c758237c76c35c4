"""The page as a browser reads it: nothing from elsewhere, nothing unescaped, nothing unreachable."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_results import ENCODER, NASTY, Wanted, results_in

from finetune.report import write_page
from finetune.report.page import breakable, render, same_noise
from finetune.results import Results, Trial

Make = Callable[[Wanted], Results]
LONG = (
    "a method whose name goes on and on, as names of settings do, with/slashes and <i>tags</i> " * 2
)

CASES = {
    "plain": Wanted(),
    "one photo, no curves": Wanted(num_photos=1, steps=()),
    "many subjects and seeds": Wanted(subjects=[f"subject {i}" for i in range(5)], seeds=(0, 7)),
    "one picture each": Wanted(num_images=1, prompts=("a {subject}",)),
    "a row failed": Wanted(failed=[("lora", "rex", 0)]),
    "everything failed": Wanted(methods=("lora",), failed=[("lora", "rex", 0)], steps=()),
    "one seed failed": Wanted(seeds=(0, 1), failed=[("lora", "rex", 1), ("frozen base", "rex", 0)]),
    "no base": Wanted(has_base=False, scores=("subject_fidelity", "prompt_fidelity")),
    "no scores": Wanted(scores=(), steps=()),
    "no prompt fidelity": Wanted(scores=("subject_fidelity", "class_drift", "copy")),
    "long names": Wanted(methods=(LONG, "b"), subjects=(LONG.replace("/", " "),)),
    "nasty words": Wanted(
        methods=(f"lora {NASTY}", "b"),
        subjects=("rex & <b>co</b>",),
        prompts=(f"a {{subject}} saying {NASTY.replace('{', '').replace('}', '')}",),
        note=NASTY,
    ),
    "many rows": Wanted(methods=[f"lora, rank {2**i}" for i in range(10)], num_images=1),
}
VOID = {"meta", "img", "br", "wbr", "col", "input", "link", "hr", "source"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, *tags: str) -> list[Element]:
        own = [self] if not tags or self.tag in tags else []
        return own + [found for child in self.children for found in child.all(*tags)]

    @property
    def words(self) -> str:
        return self.text + "".join(child.words for child in self.children)


class Tree(HTMLParser):
    """The elements of a page; raises where one is closed that is not the innermost open one."""

    def __init__(self, page: str):
        super().__init__()
        self.root = self.here = Element("", {}, None)
        self.feed(page)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        found = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(found)
        if tag not in VOID:
            self.here = found

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.text += data


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Element, str]:
    """A case's name, its page as a tree, and as text."""
    folder = tmp_path_factory.mktemp("case")
    path = write_page(results_in(folder, CASES[request.param]), folder)
    assert path == folder / "report.html"
    page = path.read_text("utf-8")
    assert path.stat().st_size < 15_000_000
    return request.param, Tree(page).root, page


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Element]:
    """Results without a hole, and their page."""
    folder = tmp_path_factory.mktemp("plain")
    results = results_in(folder, Wanted())
    return results, Tree(render(results, folder)).root


def digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def test_nothing_comes_from_elsewhere(case: tuple[str, Element, str]) -> None:
    _, root, _ = case
    for element in root.all():
        assert element.tag not in {
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "video",
            "audio",
        }
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            assert name not in {"style", "srcset", "action", "formaction", "background", "ping"}
            if name in {"src", "href", "xlink:href"} and value:
                assert value.startswith(("#", "data:image/webp;base64,")), value[:80]
            if "url(" in value:
                assert re.fullmatch(r"url\(#[^)]+\)", value)
    (css,) = root.all("style")
    assert "url(" not in css.text
    assert "@import" not in css.text


def test_policy_allows_this_script_and_style_sheet_alone(case: tuple[str, Element, str]) -> None:
    _, root, _ = case
    (policy,) = [
        m.attributes["content"]
        for m in root.all("meta")
        if m.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,), (css,) = root.all("script"), root.all("style")
    assert dict(part.split(" ", 1) for part in policy.split("; ")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": digest(css.text),
        "script-src": digest(script.text),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_what_users_wrote_shows_as_text(case: tuple[str, Element, str]) -> None:
    name, root, page = case
    assert "<script>alert" not in page
    assert NASTY in " ".join(pre.words for pre in root.all("pre"))  # in the command, in every case
    assert "49" not in root.all("h1")[0].words  # {{ 7 * 7 }} is not a template
    if name == "nasty words":
        headers = [th.words for th in root.all("th")]
        assert any("<script>alert(1)</script>" in words for words in headers)
        alts = [image.attributes["alt"] for image in root.all("img")]
        assert any('saying <script>alert(1)</script> "quoted"' in alt for alt in alts)
        assert NASTY in [item.words for item in root.all("li")]


def test_identifiers_are_unique_and_referred_to(case: tuple[str, Element, str]) -> None:
    _, root, _ = case
    ids = Counter(e.attributes["id"] for e in root.all() if "id" in e.attributes)
    assert [name for name, number in ids.items() if number > 1] == []
    for element in root.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
        for value in (element.attributes.get("href", ""), *element.attributes.values()):
            if value.startswith("#"):
                assert value[1:] in ids, value
            for match in re.findall(r"url\(#([^)]+)\)", value):
                assert match in ids


def test_headings_descend_by_one(case: tuple[str, Element, str]) -> None:
    _, root, _ = case
    levels = [int(e.tag[1]) for e in root.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert [e.tag for e in root.all("main", "header", "footer", "nav")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert root.all("html")[0].attributes["lang"] == "en"


def test_pictures_have_texts_and_each_is_embedded_once(case: tuple[str, Element, str]) -> None:
    name, root, _ = case
    images = [image for image in root.all("img") if "src" in image.attributes]
    assert all(image.attributes["alt"].strip() for image in root.all("img"))
    assert all(int(image.attributes["width"]) > 0 for image in images)
    per_tile = Counter(image.attributes["src"] for image in images)
    wanted = CASES[name]
    cells = len(wanted.methods) + wanted.has_base, len(wanted.subjects), len(wanted.seeds)
    num_cells = cells[0] * cells[1] * cells[2] - len(wanted.failed)
    expected = num_cells * (len(wanted.prompts) + 2) * wanted.num_images
    expected += len(wanted.subjects) * wanted.num_photos
    strips = {
        (row, subject)
        for row in wanted.methods
        for subject in wanted.subjects
        for seed in wanted.seeds
        if (row, subject, seed) not in wanted.failed
    }
    expected += len(strips) * len(wanted.steps)
    assert sum(per_tile.values()) == expected


def test_tables_are_rectangular_and_their_headers_have_scopes(
    case: tuple[str, Element, str],
) -> None:
    _, root, _ = case
    for table in root.all("table"):
        assert table.all("caption")
        assert all(th.attributes["scope"] in {"col", "row", "colgroup"} for th in table.all("th"))
        widths = {
            sum(int(cell.attributes.get("colspan", 1)) for cell in row.children)
            for row in table.all("tr")
        }
        assert len(widths) == 1
        assert table.parent is not None
        assert table.parent.attributes["tabindex"] == "0"  # scrolls by keyboard
        assert table.parent.attributes["aria-label"]


def test_failed_cells_are_named_with_their_reasons(make_results: Make, tmp_path: Path) -> None:
    wanted = Wanted(subjects=("rex", "bo"), failed=[("lora", "rex", 0)])
    root = Tree(render(make_results(wanted), tmp_path)).root
    (section,) = [s for s in root.all("section") if s.attributes["id"] == "failures"]
    (row,) = section.all("tbody")[0].all("tr")
    assert [cell.words for cell in row.children] == ["lora", "rex", "0", NASTY]
    gallery = root.all("details")[0]
    (line,) = [tr for tr in gallery.all("tr") if tr.children[0].words.startswith("lora")]
    assert line.all("img") == []
    assert NASTY in line.words


def test_a_trial_that_was_the_least_bad_is_not_shown_as_a_good_one(
    make_results: Make, tmp_path: Path
) -> None:
    results = make_results(Wanted())
    trials = tuple(
        Trial(settings={"method.learning_rate": 3e-4}, status="finished", allowed=allowed)
        for allowed in (False, True, False)
    )
    rows = [
        row.model_copy(
            update={"trials": trials, "chosen_trial": {"dreambooth": 0}.get(row.name, 1)}
        )
        for row in results.rows
        if row.kind == "method"
    ]
    page = render(results.model_copy(update={"rows": tuple(rows)}), tmp_path)
    told = re.findall(r'<td class="conclusion">(chosen.*?|outside the limits)</td>', page)
    assert told == [
        "chosen, though outside the limits", "outside the limits",
        "outside the limits", "chosen", "outside the limits",
    ]  # fmt: skip


def test_a_page_without_failures_speaks_of_none(plain: tuple[Results, Element]) -> None:
    _, root = plain
    assert "failures" not in {s.attributes["id"] for s in root.all("section")}


def test_the_enlarged_picture_is_told_about_by_its_own_numbers(
    plain: tuple[Results, Element],
) -> None:
    results, root = plain
    (tile,) = [
        button.attributes
        for button in root.all("button")
        if button.attributes.get("data-heading") == "lora · rex · picture 2"
        and button.attributes["data-column"] == "1"
    ]
    (cell,) = results.cells_of("lora")
    assert tile["data-prompt"] == "a sks dog at night"
    values = {id: cell.scores[f"{id}/{ENCODER}"][1][1] for id in ("subject_fidelity", "copy")}
    assert f"subject fidelity {values['subject_fidelity']:.3f}" in tile["data-notes"]
    assert f"copy {values['copy']:.3f}" in tile["data-notes"]
    assert tile["data-notes"].endswith("noise seed 1001")


def test_a_row_s_own_noun_stands_in_its_subject_s_words_alone(
    make_results: Make, tmp_path: Path
) -> None:
    """Pictures of the class are of the suite's noun in every row, and so says the page."""
    results = make_results(Wanted(num_images=1))
    rows = tuple(
        row.model_copy(update={"class_noun": "cat"}) if row.name == "lora" else row
        for row in results.rows
    )
    cells = tuple(
        cell.model_copy(update={"subject_phrase": "sks cat"}) if cell.row == "lora" else cell
        for cell in results.cells
    )
    changed = results.model_copy(update={"rows": rows, "cells": cells})
    asked = {
        tile.attributes["data-prompt"]
        for tile in Tree(render(changed, tmp_path)).root.all("button")
        if tile.attributes.get("data-heading", "").startswith("lora")
    }
    assert asked == {
        "a photo of a sks cat on the beach",
        "a sks cat at night",
        "a photo of a dog",
        "a bowl of fruit",
        "a sks cat in the rain",  # along training
    }


def test_a_lead_of_single_runs_says_so_beside_the_name(make_results: Make, tmp_path: Path) -> None:
    results = make_results(Wanted())
    first = results.verdict[0].model_copy(
        update={"leaders": ("lora",), "scope": "1 subject, 1 training run"}
    )
    changed = results.model_copy(update={"verdict": (first, *results.verdict[1:])})
    leads = [
        p.words
        for p in Tree(render(changed, tmp_path)).root.all("p")
        if p.attributes.get("class") == "lead"
    ]
    assert leads == ["lora here: 1 subject, 1 training run", "dreambooth", "Not measured"]


def test_pictures_of_one_place_stand_in_one_column(plain: tuple[Results, Element]) -> None:
    _, root = plain
    gallery = root.all("table")[0]
    headers = [th.words for th in gallery.all("thead")[0].all("tr")[1].all("th")]
    for row in gallery.all("tbody")[0].all("tr")[1:]:
        for number, cell in enumerate(row.all("td")):
            for variant, image in enumerate(cell.all("img"), start=1):
                assert image.attributes["alt"].endswith(f": {headers[number]}, picture {variant}")
    decoded = [image.attributes["src"] for image in gallery.all("img")]
    assert len(set(decoded)) == len(decoded)


def test_missing_and_damaged_files_leave_boxes_with_reasons(
    make_results: Make, tmp_path: Path
) -> None:
    results = make_results(Wanted(num_images=1, steps=()))
    files = [pictures[0] for cell in results.cells_of("lora") for pictures in cell.pictures]
    (tmp_path / files[0]).unlink()
    (tmp_path / files[1]).write_bytes(b"no picture")
    root = Tree(render(results, tmp_path)).root
    (line,) = [
        tr for tr in root.all("table")[0].all("tr") if tr.children[0].words.startswith("lora")
    ]
    assert "its file is not there any more" in line.children[1].words
    assert "its file cannot be read" in line.children[2].words
    assert line.children[3].all("img")


def test_the_page_is_the_same_every_time(make_results: Make, tmp_path: Path) -> None:
    results = make_results(Wanted(methods=("lora",), num_images=1))
    assert render(results, tmp_path) == render(results, tmp_path)


def test_a_suite_too_large_loses_pictures_and_says_so(make_results: Make, tmp_path: Path) -> None:
    def noise(path: Path, number: int) -> None:
        Image.effect_noise((64, 64), 90 + number % 7).convert("RGB").save(path)

    results = make_results(Wanted(num_images=4, steps=(), paint=noise))
    whole = render(results, tmp_path)
    assert "at most 512 pixels" in whole
    room = 2_000_000 + 60_000
    small = render(results, tmp_path, max_bytes=room)
    assert len(small.encode()) < room
    shown = re.search(r"Shown are (\d) of 4 pictures of each place", small)
    assert shown is not None
    assert 1 <= int(shown.group(1)) < 4
    assert len(re.findall('src="data:', small)) < len(re.findall('src="data:', whole))


def test_noise_is_called_the_same_only_where_it_is(plain: tuple[Results, Element]) -> None:
    results, root = plain
    assert "began from the same noise" in root.words
    assert same_noise(results)
    for seeds in ((), ((1, 2),) * 4):
        cells = tuple(
            cell.model_copy(update={"noise_seeds": seeds}) if cell.row == "lora" else cell
            for cell in results.cells
        )
        assert not same_noise(results.model_copy(update={"cells": cells}))


def test_names_of_rows_may_go_on_in_the_next_line_and_stay_text() -> None:
    assert breakable("textual_inversion/<i>") == "textual_<wbr>inversion/<wbr>&lt;i&gt;"
