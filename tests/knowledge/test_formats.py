"""Every kind of file a school has: the text a person sees, in order, each piece with a place; and what must never be done."""

from __future__ import annotations

import json
import socket
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.knowledge import readers
from appliance.knowledge.extract import Extracted, extract
from appliance.settings import Settings
from tests.knowledge.helpers import (
    MAGNETS,
    PLANTS,
    RIVERS,
    archive,
    epub,
    odt,
    pdf,
    pptx,
    relations,
    shape,
    with_part,
    word,
    xlsx,
)


def _read(path: Path, settings: Settings) -> Extracted:
    return extract(path, path.name, settings)


def _text(path: Path, settings: Settings) -> str:
    return "\n".join(section.text for section in _read(path, settings).sections)


def _fault(path: Path, settings: Settings, kind: type[ApplianceError] = BadInput) -> str:
    with pytest.raises(kind) as caught:
        _read(path, settings)
    assert path.name in caught.value.message and caught.value.hint and "\n" not in caught.value.message
    return caught.value.message


# --- slides ----------------------------------------------------------------------------------------------------------
def test_slides_come_in_the_order_in_which_they_are_shown_with_their_numbers(tmp_path: Path, settings: Settings) -> None:
    slides = [shape("Magnets", "ctrTitle") + shape(MAGNETS), shape("Plants", "title") + shape(f"{PLANTS}\nSecond", "body")]
    found = _read(pptx(tmp_path / "a.pptx", slides, order=[2, 1]), settings)
    assert (found.kind, found.title, found.pages) == ("pptx", "Plants", 2)
    assert [(s.place, s.page, s.heading) for s in found.sections] == [("slide 1", 1, "Plants"), ("slide 2", 2, "Magnets")]
    assert found.sections[0].text == f"Plants\n{PLANTS}\nSecond"


def _line(text: str) -> str:
    return f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>"


def test_tables_groups_and_notes_of_a_slide_are_read_and_its_numbers_and_footers_are_not(
    tmp_path: Path, settings: Settings
) -> None:
    rows = "".join(
        "<a:tr>" + "".join(f"<a:tc><a:txBody>{_line(cell)}</a:txBody></a:tc>" for cell in row) + "</a:tr>"
        for row in (("Metal", "Melts at"), ("Iron", "1538"))
    )
    table = f"<p:graphicFrame><a:graphic><a:graphicData><a:tbl>{rows}</a:tbl></a:graphicData></a:graphic></p:graphicFrame>"
    grouped = f"<p:grpSp>{shape('In a group')}</p:grpSp>"
    shapes = shape("Metals", "title") + grouped + table + shape("3", "sldNum") + shape("Our school", "ftr")
    found = _read(pptx(tmp_path / "a.pptx", [shapes], notes={1: "Bring the samples."}), settings)
    assert found.sections[0].text == "Metals\nIn a group\nMetal | Melts at\nIron | 1538\nNotes: Bring the samples."


def test_hidden_and_empty_slides_keep_their_numbers_and_are_named(tmp_path: Path, settings: Settings) -> None:
    found = _read(pptx(tmp_path / "a.pptx", [shape("One"), "hidden" + shape("Answers"), "", shape("Four")]), settings)
    assert [(section.text, section.page) for section in found.sections] == [("One", 1), ("Four", 4)]
    assert found.note == "Slide 3 has no text. Slide 2 has been hidden in the presentation: not read."
    assert "only slides without text" in _fault(pptx(tmp_path / "b.pptx", ["", ""]), settings)


def test_a_slide_deck_that_lost_its_slides_is_damaged(tmp_path: Path, settings: Settings) -> None:
    path = pptx(tmp_path / "a.pptx", [shape("One")])
    assert "slides cannot be found" in _fault(with_part(path, "ppt/_rels/presentation.xml.rels", b"<R/>"), settings)


# --- word processors -------------------------------------------------------------------------------------------------
def _p(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def test_docx_text_in_content_controls_links_and_accepted_changes_is_read_and_deleted_text_is_not(
    tmp_path: Path, settings: Settings
) -> None:
    body = (
        f"<w:sdt><w:sdtContent>{_p('In a control.')}</w:sdtContent></w:sdt>"
        "<w:p><w:hyperlink><w:r><w:t>Linked</w:t></w:r></w:hyperlink>"
        "<w:ins><w:r><w:t xml:space='preserve'> added</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del><w:r><w:instrText>PAGE</w:instrText><w:tab/><w:t>end</w:t></w:r></w:p>"
        "<w:p><w:r><mc:AlternateContent><mc:Choice><w:drawing><w:txbxContent>" + _p("Boxed") + "</w:txbxContent></w:drawing>"
        "</mc:Choice><mc:Fallback>" + _p("Boxed") + "</mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    assert _text(word(tmp_path / "a.docx", body), settings) == "In a control.\nLinked added end\nBoxed"


def test_docx_headings_are_known_by_name_by_outline_and_by_what_they_are_based_on(tmp_path: Path, settings: Settings) -> None:
    styles = (
        '<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>'
        '<w:style w:styleId="Own"><w:name w:val="Our own"/><w:basedOn w:val="Sub"/></w:style>'
        '<w:style w:styleId="Sub"><w:name w:val="Sub"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
        '<w:style w:styleId="Loop"><w:name w:val="a"/><w:basedOn w:val="Loop"/></w:style>'
    )
    body = _p("Book", "berschrift1") + _p("Rivers", "Own") + _p(RIVERS, "Loop")
    found = _read(word(tmp_path / "a.docx", body, styles=styles), settings)
    assert (found.title, [section.place for section in found.sections]) == ("Book", ["Rivers"])


def test_docx_footnotes_stand_after_their_paragraph(tmp_path: Path, settings: Settings) -> None:
    body = '<w:p><w:r><w:t>Said.</w:t><w:footnoteReference w:id="2"/></w:r></w:p>' + _p("Next.")
    notes = f'<w:footnote w:type="separator" w:id="-1">{_p("x")}</w:footnote><w:footnote w:id="2">{_p("By whom.")}</w:footnote>'
    assert _text(word(tmp_path / "a.docx", body, footnotes=notes), settings) == "Said.\nNote: By whom.\nNext."


def _m(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("formula", "line"),
    [
        (f"<m:f><m:num>{_m('a+b')}</m:num><m:den>{_m('2')}</m:den></m:f>", "(a+b)/2"),
        (f"{_m('2')}<m:f><m:num>{_m('1')}</m:num><m:den>{_m('2')}</m:den></m:f>{_m('+1')}", "2 1/2 +1"),
        (f"<m:sSup><m:e>{_m('x')}</m:e><m:sup>{_m('n+1')}</m:sup></m:sSup>", "x^(n+1)"),
        (f"<m:sSubSup><m:e>{_m('x')}</m:e><m:sub>{_m('1')}</m:sub><m:sup>{_m('2')}</m:sup></m:sSubSup>", "x_1^2"),
        (f"<m:rad><m:deg>{_m('3')}</m:deg><m:e>{_m('x')}</m:e></m:rad>", "√[3]x"),
        (
            f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>{_m("i=1")}</m:sub><m:sup>{_m("n")}</m:sup>'
            f"<m:e>{_m('i')}</m:e></m:nary>",
            "∑_(i=1)^n i",
        ),
        (f'<m:d><m:dPr><m:begChr m:val="["/><m:endChr m:val="]"/></m:dPr><m:e>{_m("a")}</m:e></m:d>', "[a]"),
        (f"<m:m><m:mr><m:e>{_m('1')}</m:e><m:e>{_m('2')}</m:e></m:mr><m:mr><m:e>{_m('3')}</m:e></m:mr></m:m>", "[1, 2; 3]"),
        (f"<m:func><m:fName>{_m('sin')}</m:fName><m:e>{_m('x')}</m:e></m:func>", "sin x"),
    ],
)
def test_formulas_of_word_become_one_line(tmp_path: Path, settings: Settings, formula: str, line: str) -> None:
    body = f"<w:p><w:r><w:t>Work out</w:t></w:r><m:oMath>{formula}</m:oMath></w:p>"
    assert _text(word(tmp_path / "a.docx", body), settings) == f"Work out {line}"


def test_formulas_of_web_pages_become_one_line_and_others_keep_their_alternative_text(
    tmp_path: Path, settings: Settings
) -> None:
    half = "<mfrac><mn>1</mn><mn>2</mn></mfrac>"
    tex = '<annotation encoding="application/x-tex">2\\frac12</annotation>'
    page = tmp_path / "a.html"
    page.write_text(
        f"<html><body><p>Two and a half is <math><semantics><mrow><mn>2</mn>{half}</mrow>{tex}</semantics></math>.</p>"
        "<p>Root <math><msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt><mo>=</mo><msup><mi>y</mi><mn>2</mn></msup></math></p>"
        '<p>Bad <math alttext="a over b" xlink:href="x"></math></p></body></html>'
    )
    assert _text(page, settings) == "Two and a half is 2 1/2 .\nRoot √(x+1)=y^2\nBad a over b"


def test_rows_of_tables_on_web_pages_stay_together(tmp_path: Path, settings: Settings) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        "<html><body><p>Before</p><table><tr><th>Metal</th><th>Melts</th></tr><tr><td><p>Iron</p></td><td>1538</td></tr></table>"
        "<p>After</p></body></html>"
    )
    assert _text(page, settings) == "Before\nMetal | Melts\nIron | 1538\nAfter"


def test_odt_headings_lists_tables_notes_and_formulas(tmp_path: Path, settings: Settings) -> None:
    note = "<text:note-citation>1</text:note-citation><text:note-body><text:p>By whom.</text:p></text:note-body>"
    cells = (
        "<table:table-cell><text:p>Iron</text:p></table:table-cell>"
        '<table:table-cell table:number-columns-repeated="1000000"><text:p>1538</text:p></table:table-cell>'
    )
    body = (
        '<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes><text:h text:outline-level="1">Book</text:h>'
        '<text:h text:outline-level="2">Plants</text:h>'
        f'<text:p>Some <text:span>green</text:span><text:s text:c="999999999"/>words<text:note>{note}</text:note></text:p>'
        "<text:list><text:list-item><text:p>First</text:p></text:list-item></text:list>"
        f'<table:table><table:table-row table:number-rows-repeated="1000000">{cells}</table:table-row></table:table>'
        '<text:p>So <draw:frame><draw:object xlink:href="./Object 1"/></draw:frame></text:p>'
    )
    formula = "<math><mfrac><mi>a</mi><mi>b</mi></mfrac></math>"
    found = _read(odt(tmp_path / "a.odt", body, {"Object 1/content.xml": formula}), settings)
    assert (found.kind, found.title) == ("odt", "Book")
    assert [section.place for section in found.sections] == ["Plants"]
    assert found.sections[0].text.splitlines() == ["Some green words (By whom.)", "First", "Iron | 1538", "So a/b"]


def archive_with(path: Path, old: Path, part: str, content: str) -> Path:
    with zipfile.ZipFile(old) as there:
        parts: dict[str, str | bytes] = {name: there.read(name) for name in there.namelist()}
    return archive(path, parts | {part: content})


# --- books -----------------------------------------------------------------------------------------------------------
def test_chapters_come_in_the_order_of_the_spine_with_their_headings(tmp_path: Path, settings: Settings) -> None:
    chapters = {
        "one.xhtml": f"<html><head><title>x</title></head><body><h1>Plants</h1><h2>Light</h2><p>{PLANTS}</p></body></html>",
        "two%20b.xhtml": "<!DOCTYPE html><html><head><title>Magnets</title></head>"
        f"<body><nav>x</nav><p>{MAGNETS}</p></body></html>",
    }
    path = epub(tmp_path / "a.epub", chapters, spine=["two%20b.xhtml", "one.xhtml"])
    found = _read(archive_with(tmp_path / "b.epub", path, "OPS/text/two b.xhtml", chapters["two%20b.xhtml"]), settings)
    assert (found.kind, found.title, found.pages) == ("epub", "A Book", None)
    assert [(s.place, s.text) for s in found.sections] == [("Magnets", MAGNETS), ("Plants > Light", PLANTS)]


def test_protected_books_are_refused_and_books_with_hidden_fonts_are_not(tmp_path: Path, settings: Settings) -> None:
    chapter = {"a.xhtml": f"<html><body><p>{PLANTS}</p></body></html>"}
    cipher = '<encryption><EncryptedData><CipherReference URI="{}"/></EncryptedData></encryption>'
    assert "DRM" in _fault(epub(tmp_path / "a.epub", chapter, encryption=cipher.format("OPS/text/a.xhtml")), settings)
    assert _text(epub(tmp_path / "b.epub", chapter, encryption=cipher.format("OPS/font.otf")), settings) == PLANTS


def test_missing_chapters_are_counted(tmp_path: Path, settings: Settings) -> None:
    path = epub(tmp_path / "a.epub", {"a.xhtml": f"<html><body><p>{PLANTS}</p></body></html>", "b.xhtml": "x"})
    with zipfile.ZipFile(path) as there:
        parts: dict[str, str | bytes] = {name: there.read(name) for name in there.namelist() if not name.endswith("b.xhtml")}
    assert _read(archive(tmp_path / "c.epub", parts), settings).note == "1 part of the book cannot be found in the file."


# --- tables and records ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_rows_of_text_tables_name_their_columns(tmp_path: Path, settings: Settings, separator: str) -> None:
    rows = [["Metal", "Melts at", "Use"], ["Iron", "1538", "rails"], ["Tin", "232", '"cans, ""old"" ones"']]
    (tmp_path / "a.csv").write_text("\n".join(separator.join(row) for row in rows))
    found = _read(tmp_path / "a.csv", settings)
    assert (found.kind, found.sections[0].place) == ("csv", "rows 2-3")
    assert found.sections[0].text.splitlines() == [
        "Metal: Iron; Melts at: 1538; Use: rails",
        'Metal: Tin; Melts at: 232; Use: cans, "old" ones',
    ]


def test_long_tables_fall_into_sections_that_say_their_rows(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.csv").write_text("n,square\n" + "".join(f"{n},{n * n}\n" for n in range(100)))
    places = [section.place for section in _read(tmp_path / "a.csv", settings).sections]
    assert places == ["rows 2-21", "rows 22-41", "rows 42-61", "rows 62-81", "rows 82-101"]


def test_a_table_without_header_and_text_that_is_no_table(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.csv").write_text("Ada,5\nBen,6\n")
    assert _text(tmp_path / "a.csv", settings) == "Ada | 5\nBen | 6"
    (tmp_path / "c.csv").write_text("Pupils,2019,2020\nGirls,51,60\n")
    assert _text(tmp_path / "c.csv", settings) == "Pupils: Girls; 2019: 51; 2020: 60"
    (tmp_path / "b.csv").write_text(f"{PLANTS}\n\nOne line\n\nTwo\n")
    assert _read(tmp_path / "b.csv", settings).kind == "text"


def test_a_spreadsheet_says_sheet_and_rows_and_reads_dates_and_per_cents_as_they_look(
    tmp_path: Path, settings: Settings
) -> None:
    styles = (
        '<numFmts><numFmt numFmtId="170" formatCode="d/m/yy;@"/></numFmts>'
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="9"/><xf numFmtId="170"/></cellXfs>'
    )
    rows = [
        ["Class 7b"],
        ["Name", "Born", "Score", "Mean"],
        ["Ada", '<c r="B3" s="1"><v>40000</v></c>', '<c r="C3" s="2"><v>0.85</v></c>', 0.30000000000000004],
        [
            "Ben",
            '<c s="3"><v>40001.5</v></c>',
            '<c r="C4" t="inlineStr"><is><t>absent</t></is></c>',
            '<c r="D4"><f>1+1</f></c>',
        ],
    ]
    path = xlsx(
        tmp_path / "a.xlsx", {"Marks": rows, "Notes": [["Only this"]], "Keys": [["secret"]]}, hidden="Keys", styles=styles
    )
    found = _read(path, settings)
    assert (found.kind, found.pages) == ("xlsx", None)
    assert [(section.place, section.text) for section in found.sections] == [
        (
            "Marks, rows 1-4",
            "Class 7b\nName: Ada; Born: 2009-07-06; Score: 85%; Mean: 0.3\nName: Ben; Born: 2009-07-07 12:00; Score: absent",
        ),
        ("Notes, row 1", "Only this"),
    ]
    assert "Keys is hidden" in found.note and "1 formulas have no saved result" in found.note


def test_a_cell_far_out_costs_nothing(tmp_path: Path, settings: Settings) -> None:
    far = [['<c r="A1" t="str"><v>near</v></c>'], ['<c r="XFD1048576" t="str"><v>far</v></c>']]
    assert _text(xlsx(tmp_path / "a.xlsx", {"S": far}), settings) == "near\nfar"


def test_records_name_their_fields(tmp_path: Path, settings: Settings) -> None:
    records = [{"name": "Ada", "marks": [4, 5], "home": {"town": "Leeds"}}, {"name": "Ben", "gone": None, "here": True}]
    said = ["name: Ada; marks: 4, 5; home: (town: Leeds)", "name: Ben; here: true"]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "c.json").write_text(json.dumps({"school": {"pupils": records, "motto": "Ask."}}))
    assert [(s.place, s.text.splitlines()) for s in _read(tmp_path / "a.json", settings).sections] == [("records 1-2", said)]
    assert [(s.place, s.text.splitlines()) for s in _read(tmp_path / "b.jsonl", settings).sections] == [("lines 1-2", said)]
    assert [(s.place, s.text.splitlines()) for s in _read(tmp_path / "c.json", settings).sections] == [
        ("school", ["motto: Ask."]),
        ("school > pupils, records 1-2", said),
    ]


def test_json_that_is_none_is_read_as_text_and_deep_json_is_refused(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.json").write_text('{"name": "Ada", }')
    found = _read(tmp_path / "a.json", settings)
    assert (found.kind, found.note) == ("text", "It is not valid JSON: it was read as plain text.")
    (tmp_path / "b.json").write_text("[" * 100_000 + "]" * 100_000)
    assert "too deep" in _fault(tmp_path / "b.json", settings)


# --- what must never happen ------------------------------------------------------------------------------------------
DECLARATION = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("hide", ["nothing", "a long comment", "utf-16", "utf-16 and no mark"])
def test_declarations_are_found_wherever_and_however_they_are_written(tmp_path: Path, settings: Settings, hide: str) -> None:
    comment = f"<!--{' ' * 100_000}-->" if hide == "a long comment" else ""
    encoding = "utf-16-le" if hide == "utf-16 and no mark" else "utf-16" if hide == "utf-16" else "utf-8"
    text = f'<?xml version="1.0" encoding="{encoding[:6] if "16" in encoding else "utf-8"}"?>{comment}{DECLARATION}<x>&b;</x>'
    made = {
        "ppt/slides/slide1.xml": pptx(tmp_path / "a.pptx", [shape(PLANTS)]),
        "xl/worksheets/sheet1.xml": xlsx(tmp_path / "a.xlsx", {"S": [["a", "b"]]}),
        "xl/sharedStrings.xml": xlsx(tmp_path / "b.xlsx", {"S": [["a", "b"]]}),
        "OPS/book.opf": epub(tmp_path / "a.epub", {"a.xhtml": PLANTS}),
        "content.xml": odt(tmp_path / "a.odt", ""),
        "word/document.xml": word(tmp_path / "a.docx", _p(PLANTS)),
    }
    for part, path in made.items():
        assert "XML entities" in _fault(with_part(path, part, text.encode(encoding)), settings)


def test_an_archive_inside_an_archive_is_never_unpacked(tmp_path: Path, settings: Settings) -> None:
    inner = BytesIO()
    with zipfile.ZipFile(inner, "w") as made:
        made.writestr("word/document.xml", f"<a>{PLANTS}</a>")
    outer = archive(tmp_path / "a.zip", {"inner.docx": inner.getvalue()})
    assert "is a ZIP archive, which is not unpacked" in _fault(outer, settings)
    assert (
        _text(archive_with(tmp_path / "b.docx", word(tmp_path / "a.docx", _p("Mine.")), "word/x.zip", "PK"), settings)
        == "Mine."
    )


def test_parts_are_found_only_inside_the_archive(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "secret.xml").write_text(f"<p:sld xmlns:p='p' xmlns:a='a'>{shape('secret')}</p:sld>")
    for target in ("../../secret.xml", str(tmp_path / "secret.xml"), f"file://{tmp_path}/secret.xml", "http://127.0.0.1:9/x"):
        path = pptx(tmp_path / "a.pptx", [shape("One")])
        links = relations({"r1": ("slide", target)}).encode()
        assert "slides cannot be found" in _fault(with_part(path, "ppt/_rels/presentation.xml.rels", links), settings)
    book = epub(tmp_path / "a.epub", {"../../../secret.xml": "x"})
    with zipfile.ZipFile(book) as there:
        parts: dict[str, str | bytes] = {name: there.read(name) for name in there.namelist() if "secret" not in name}
    assert "no chapters" in _fault(archive(tmp_path / "b.epub", parts), settings)


def test_nothing_that_a_document_points_to_is_opened(tmp_path: Path) -> None:
    """Read without the child's walls, so that the readers themselves are seen to leave files and addresses alone."""
    secret = tmp_path / "secret.xml"
    secret.write_text(f"<secret>{RIVERS}</secret>")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        web = f"http://127.0.0.1:{server.getsockname()[1]}/x.xml"
        near = secret.as_uri()
        page = f"<html><head><link rel='stylesheet' href='{web}'><base href='{near}'></head><body><p>{PLANTS}</p>"
        page += f"<img src='{web}'><iframe src='{near}'></iframe><object data='{near}'></object></body></html>"
        (tmp_path / "a.html").write_text(f'<!DOCTYPE html SYSTEM "{web}">{page}')
        include = f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{near}"/><?xml-stylesheet href="{web}"?>'
        template = f'<Relationship Id="t" Type="x/styles" Target="{web}" TargetMode="External"/>'
        outside = f"<Relationships>{template}</Relationships>"
        made = [
            tmp_path / "a.html",
            word(tmp_path / "a.docx", _p(PLANTS) + include),
            epub(tmp_path / "a.epub", {"a.xhtml": page}),
            odt(tmp_path / "a.odt", f'<text:p>{PLANTS}<draw:object xlink:href="{near}"/>{include}</text:p>'),
            pptx(tmp_path / "a.pptx", [shape(PLANTS) + include]),
            archive_with(tmp_path / "b.docx", word(tmp_path / "c.docx", _p(PLANTS)), "word/_rels/document.xml.rels", outside),
        ]
        for path in made:
            found = readers.read(path, path.name, 100_000)
            assert [text for text, _, _, _ in found.sections] == [PLANTS], path.name
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_part_that_is_one_slide_five_thousand_times_stays_within_its_limits(tmp_path: Path, settings: Settings) -> None:
    path = pptx(tmp_path / "a.pptx", [shape("word " * 200_000)])
    listed = "".join(f'<p:sldId r:id="r1" id="{number}"/>' for number in range(5000))
    body = f'<p:presentation xmlns:p="p" xmlns:r="r"><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>'
    assert "20,000,000 characters" in _fault(with_part(path, "ppt/presentation.xml", body.encode()), settings, TooLarge)
    body = body.replace("</p:sldIdLst>", f"{listed}</p:sldIdLst>")
    assert "10,000 slides" in _fault(with_part(path, "ppt/presentation.xml", body.encode()), settings, TooLarge)


def test_the_limits_of_one_table_and_of_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.knowledge.readers.tables.CELLS", 5)
    path = xlsx(tmp_path / "a.xlsx", {"S": [["a", "b"], ["c", "d"], ["e", "f"]]})
    with pytest.raises(TooLarge, match="more than 5 cells"):
        readers.read(path, path.name, 1000)
    with pytest.raises(TooLarge, match="part of 5,000 bytes"):
        readers.read(archive(tmp_path / "a.epub", {"mimetype": "x" * 5000}), "a.epub", 1000)


def test_parts_nested_without_end_are_refused(tmp_path: Path, settings: Settings) -> None:
    for levels in (200, 2_000, 100_000):
        deep = "<w:sdt>" * levels + _p(PLANTS) + "</w:sdt>" * levels
        spans = "<text:span>" * levels + PLANTS + "</text:span>" * levels
        for path in (word(tmp_path / "a.docx", deep), odt(tmp_path / "a.odt", f"<text:p>{spans}</text:p>")):
            if levels == 200:
                assert _text(path, settings) == PLANTS
            else:
                assert _fault(path, settings)


def test_a_pdf_of_fifty_thousand_pages_is_refused_by_its_count(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pypdfium2

    pages = "".join(f"{number} 0 obj\n<</Type/Page/Parent 2 0 R>>\nendobj\n" for number in range(3, 50_003))
    kids = " ".join(f"{number} 0 R" for number in range(3, 50_003))
    body = (
        f"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Count 50000/Kids[{kids}]>>\nendobj\n"
    )
    (tmp_path / "a.pdf").write_text(f"{body}{pages}trailer\n<</Root 1 0 R>>\n%%EOF\n")
    assert "has 50,000 pages: more than the 5,000" in _fault(tmp_path / "a.pdf", settings, TooLarge)
    fewer = settings.model_copy(update={"document_pages": 40})
    assert "has 50,000 pages: more than the 40 " in _fault(tmp_path / "a.pdf", fewer, TooLarge)

    class Opened(Exception):
        pass

    def opened(*_: object) -> None:
        raise Opened

    monkeypatch.setattr(pypdfium2.PdfDocument, "__getitem__", opened)
    with pytest.raises(Opened):
        readers.read(tmp_path / "a.pdf", "a.pdf", 1000, 50_000)
    with pytest.raises(TooLarge, match="50,000 pages"):  # none of them was opened
        readers.read(tmp_path / "a.pdf", "a.pdf", 1000, 5_000)


def test_locked_office_files_say_so(tmp_path: Path, settings: Settings) -> None:
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    (tmp_path / "a.pptx").write_bytes(ole + "EncryptedPackage".encode("utf-16-le"))
    assert "locked with a password" in _fault(tmp_path / "a.pptx", settings)
    (tmp_path / "b.xls").write_bytes(ole)
    assert "old Office format" in _fault(tmp_path / "b.xls", settings)
    data = bytearray(word(tmp_path / "c.docx", _p(PLANTS)).read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "c.docx").write_bytes(bytes(data))
    assert "locked with a password" in _fault(tmp_path / "c.docx", settings)
    manifest = "<m><encryption-data/></m>"
    assert "locked" in _fault(odt(tmp_path / "d.odt", "", {"META-INF/manifest.xml": manifest}), settings)


def test_other_archives_are_named_for_what_they_are(tmp_path: Path, settings: Settings) -> None:
    sheet = archive(tmp_path / "a.ods", {"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": "<a/>"})
    assert "is an OpenDocument spreadsheet" in _fault(sheet, settings)
    with zipfile.ZipFile(odt(tmp_path / "e.odt", "<text:p>Hi there</text:p>")) as whole:
        bare = archive(tmp_path / "d.odt", {"content.xml": whole.read("content.xml")})
    assert _text(bare, settings) == "Hi there", "some programs leave out what they are"
    no_text = archive(tmp_path / "f.odt", {"content.xml": "<a/>"})
    assert "no readable ODT" in _fault(no_text, settings)
    assert "XLSB" in _fault(archive(tmp_path / "b.xlsb", {"xl/workbook.bin": b"x"}), settings)
    found = _read(word(tmp_path / "c.epub", _p(PLANTS)), settings)
    assert found.note == "The name says EPUB, but the content is DOCX: it was read as DOCX."


def test_too_many_sections_are_refused_by_the_process_that_asks(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.knowledge.extract.SECTIONS", 3)
    (tmp_path / "a.txt").write_text("one thing\n\n" * 3)
    assert len(_read(tmp_path / "a.txt", settings).sections) == 3
    (tmp_path / "a.txt").write_text("one thing\n\n" * 4)
    assert "more than 3 sections" in _fault(tmp_path / "a.txt", settings, TooLarge)
    assert _read(pdf(tmp_path / "a.pdf", [PLANTS]), settings).pages == 1


# --- titles -----------------------------------------------------------------------------------------------------------
def test_titles_that_programs_make_up_are_none(tmp_path: Path, settings: Settings) -> None:
    path = word(tmp_path / "a.docx", _p(PLANTS))
    for title, shown in (("PowerPoint Presentation", ""), ("Document1", ""), ("a.docx", ""), ("PowerPoint for pupils",) * 2):
        named = archive_with(tmp_path / "b.docx", path, "docProps/core.xml", f"<c xmlns:d='d'><d:title>{title}</d:title></c>")
        assert _read(named, settings).title == shown
    broken = archive_with(tmp_path / "b.docx", path, "docProps/core.xml", "<c>")
    assert _text(broken, settings) == PLANTS, "properties that cannot be read are no reason to lose the text"
