"""Reading documents: good ones with their places, bad ones with one clear sentence."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.errors import ApplianceError, BadInput, NotFound, TooLarge
from appliance.knowledge import extract as extracting
from appliance.knowledge.extract import Extracted, clean_name, extract
from appliance.knowledge.readers.letters import code_page
from appliance.settings import CLONE, Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, docx, pdf, with_part, zip_bomb


def _read(path: Path, settings: Settings) -> Extracted:
    return extract(path, path.name, settings.model_copy(update={"ocr_languages": ""}))  # alike on every machine


def _fault(path: Path, settings: Settings, kind: type[ApplianceError] = BadInput) -> str:
    with pytest.raises(kind) as caught:
        _read(path, settings)
    assert path.name in caught.value.message, "the sentence names the file"
    assert caught.value.hint, "and there is a next step"
    assert "\n" not in caught.value.message
    return caught.value.message


# --- good documents --------------------------------------------------------------------------------------------------
def test_pdf_text_has_page_numbers_and_pages_without_text_are_named(tmp_path: Path, settings: Settings) -> None:
    found = _read(pdf(tmp_path / "a.pdf", [PLANTS, MAGNETS, "", "", "", RIVERS], title="Science"), settings)
    assert (found.kind, found.title, found.pages) == ("pdf", "Science", 6)
    assert [(section.page, section.place) for section in found.sections] == [(1, "p. 1"), (2, "p. 2"), (6, "p. 6")]
    assert found.sections[1].text == MAGNETS, "wrapped lines are one paragraph again"
    assert found.note == "Pages 3-5 have no text: they are pictures."


def test_running_heads_are_left_out(tmp_path: Path, settings: Settings) -> None:
    pages = [f"Our book page {number}" + " " * 60 for number in range(1, 7)]
    body = [PLANTS, MAGNETS, RIVERS, PLANTS, MAGNETS, RIVERS]
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"))
    for head, text in zip(pages, body, strict=True):
        canvas.drawString(30, 800, head.strip())
        canvas.drawString(30, 700, text)
        canvas.showPage()
    canvas.save()
    assert all("Our book" not in section.text for section in _read(tmp_path / "a.pdf", settings).sections)


def test_docx_places_are_paths_of_headings(tmp_path: Path, settings: Settings) -> None:
    blocks = [(1, "Biology"), (0, "Living things."), (2, "Plants"), (0, PLANTS), (1, "Physics"), (2, "Magnets"), (0, MAGNETS)]
    found = _read(docx(tmp_path / "a.docx", blocks), settings)
    assert found.title == "Biology"
    assert [section.place for section in found.sections] == ["beginning", "Plants", "Physics > Magnets"]
    assert found.sections[1].text == PLANTS


def test_docx_tables_are_read_row_by_row(tmp_path: Path, settings: Settings) -> None:
    import docx as library

    document = library.Document()
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Metal", "Melts at", "Iron", "1538 degrees"], strict=True):
        cell.text = text
    document.save(str(tmp_path / "t.docx"))
    assert _read(tmp_path / "t.docx", settings).sections[0].text == "Metal | Melts at\nIron | 1538 degrees"


def test_markdown_and_html_say_the_same(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.md").write_text(
        f"---\ntags: x\n---\n# Science\n\n## Plants\n\n{PLANTS}\n\n## Magnets\n\n**A compass** is `new`.\n"
    )
    (tmp_path / "a.html").write_text(
        f"<html><head><title>Science</title><style>p {{}}</style><script>alert(1)</script></head><body><h1>Science</h1>"
        f"<h2>Plants</h2><p>{PLANTS}</p><h2>Magnets</h2><!-- x --><p><b>A compass</b> is <code>new</code>.</p></body></html>"
    )
    one, other = _read(tmp_path / "a.md", settings), _read(tmp_path / "a.html", settings)
    assert one.sections == other.sections
    assert [(section.place, section.text) for section in one.sections] == [("Plants", PLANTS), ("Magnets", "A compass is new.")]
    assert one.title == other.title == "Science"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_text_of_any_common_encoding(tmp_path: Path, settings: Settings, encoding: str) -> None:
    text = "Les élèves étudient la géographie à l'école. La forêt où naît la rivière est très belle en été.\n\nFin déjà."
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    found = _read(tmp_path / "a.txt", settings)
    assert "élèves étudient" in found.sections[0].text
    assert [section.place for section in found.sections] == ["line 1", "line 3"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("koi8-r", "Растения строят сахар из солнечного света, воды и углекислого газа. Листья зелёные."),  # noqa: RUF001
        ("cp1251", "Растения строят сахар из солнечного света, воды и углекислого газа. Листья зелёные."),  # noqa: RUF001
        ("shift_jis", "植物は太陽の光と水と二酸化炭素から糖を作ります。葉が緑色に見えるのは葉緑素があるからです。"),
        ("euc_jp", "植物は太陽の光と水と二酸化炭素から糖を作ります。葉が緑色に見えるのは葉緑素があるからです。"),
        ("gb18030", "绿色植物利用阳光、水和二氧化碳制造糖。叶子看起来是绿色的,因为它们含有叶绿素。"),
        ("big5", "綠色植物利用陽光、水和二氧化碳製造糖。葉子看起來是綠色的,因為它們含有葉綠素。"),
        ("euc_kr", "녹색 식물은 햇빛과 물과 이산화탄소로 당을 만듭니다. 강은 산에서 자갈과 모래를 나릅니다."),
        ("iso8859-7", "Τα πράσινα φυτά φτιάχνουν ζάχαρη από το φως του ήλιου, το νερό και το διοξείδιο του άνθρακα."),  # noqa: RUF001
        ("cp1256", "تصنع النباتات الخضراء السكر من ضوء الشمس والماء وثاني أكسيد الكربون."),
    ],
)
@pytest.mark.parametrize("times", [1, 200])
def test_text_of_other_scripts_in_their_old_encodings(
    tmp_path: Path, settings: Settings, encoding: str, text: str, times: int
) -> None:
    (tmp_path / "a.txt").write_bytes("\n\n".join([text] * times).encode(encoding))
    assert {section.text for section in _read(tmp_path / "a.txt", settings).sections} == {text}


LATIN = [
    ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Listy jsou zelené, protože odrážejí zelené světlo."),
    ("iso8859-2", "Příliš žluťoučký kůň úpěl ďábelské ódy. Listy jsou zelené, protože odrážejí zelené světlo."),
    ("cp1250", "Liście są zielone, ponieważ odbijają zielone światło. Rośliny wytwarzają cukier z wody i światła."),
    ("cp1250", "A levelek zöldek, mert visszaverik a zöld fényt. Az őszi erdő sárga, és hűvösebb az idő, mint előbb."),
    ("cp1250", "Frunzele sunt verzi pentru că reflectă lumina verde. Învăţătoarea întreabă copiii în fiecare dimineaţă."),
    ("cp1254", "Yapraklar yeşildir çünkü yeşil ışığı yansıtırlar. Bitkiler güneş ışığından şeker üretir."),  # noqa: RUF001
    ("cp1252", "Les feuilles sont vertes parce qu'elles réfléchissent la lumière « verte ». À l'automne, la forêt."),
    ("cp1252", "Blätter sind grün, weil sie grünes Licht zurückwerfen. Im Herbst färben sich die Wälder draußen."),
    ("cp1252", "¿Por qué son verdes las hojas? El niño pequeño preguntó si en otoño caen los árboles. ¡Qué ilusión!"),
    ("cp1252", "Não há estações iguais: as folhas são verdes porque refletem a luz, e então não há mais nada."),
    ("cp1252", "Perché la foglia è verde? È così, perché la luce è riflessa, e più c'è luce, più è verde."),
    ("cp1252", "Om efteråret bliver træerne gule og røde. Dyrene søger læ på øen. «Først på året», sagde far."),
    ("cp1252", "Það er haust og þýðir að laufin falla. Lauf eru græn vegna þess að þau endurkasta grænu ljósi."),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "text"), LATIN, ids=[f"{encoding} {text[:9]}" for encoding, text in LATIN])
@pytest.mark.parametrize("times", [1, 200])
def test_text_of_latin_letters_in_their_old_code_pages(
    tmp_path: Path, settings: Settings, encoding: str, text: str, times: int
) -> None:
    """The same bytes are õ in one and ő in the other: what tells them apart is how often a language has which."""
    (tmp_path / "a.txt").write_bytes("\n\n".join([text] * times).encode(encoding))
    assert {section.text for section in _read(tmp_path / "a.txt", settings).sections} == {text}


def test_a_letter_or_two_prove_nothing() -> None:
    for text in (
        "Ein õ allein",
        "Renée Zoë",
        "ñandú, señor",
        "",
        "only ASCII",
        "Ný, ½ m³ = 500 l; 20 °C ± 1",
        "10 cm³ + 5 cm³ = 15 cm³, ½ + ¾, ¹ ² ³; µ " * 9,
    ):
        assert not code_page(text.encode("cp1252")), text


def test_type_goes_by_content_and_a_wrong_name_is_mentioned(tmp_path: Path, settings: Settings) -> None:
    path = pdf(tmp_path / "a.pdf", [PLANTS]).rename(tmp_path / "a.docx")
    found = _read(path, settings)
    assert found.kind == "pdf"
    assert found.note == "The name says DOCX, but the content is PDF: it was read as PDF."


# --- bad documents ---------------------------------------------------------------------------------------------------
def test_locked_pdf(tmp_path: Path, settings: Settings) -> None:
    assert "locked with a password" in _fault(pdf(tmp_path / "a.pdf", [PLANTS], password="chalk"), settings)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_truncated_pdf(tmp_path: Path, settings: Settings, keep: float) -> None:
    path = pdf(tmp_path / "a.pdf", [PLANTS] * 20)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert "cut off" in _fault(path, settings)


def test_pdf_of_pictures(tmp_path: Path, settings: Settings) -> None:
    assert "only pictures" in _fault(pdf(tmp_path / "a.pdf", ["", ""]), settings)


def test_damaged_pdf(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 40 + b"\n%%EOF\n")
    assert "damaged" in _fault(tmp_path / "a.pdf", settings)


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.md", "a.html", "a.txt"])
def test_empty_file(tmp_path: Path, settings: Settings, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty" in _fault(tmp_path / name, settings)
    (tmp_path / name).write_bytes(b" \n\t\n ")
    assert "contains no text" in _fault(tmp_path / name, settings)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photo.pdf", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200)),
        ("program.txt", b"\x7fELF\2\1\1" + bytes(300)),
        ("noise.md", bytes((7 * i * i + 3 * i) % 256 for i in range(5000))),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)),
        ("letter.rtf", b"{\\rtf1\\ansi Hello}"),
        ("archive.docx", b"PK\5\6" + bytes(18)),
        ("broken.docx", b"PK\3\4" + bytes(100)),
    ],
)
def test_other_types_are_refused_whatever_their_name(tmp_path: Path, settings: Settings, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    _fault(tmp_path / name, settings)


def test_hundred_megabytes_of_text_are_refused_at_once(tmp_path: Path, settings: Settings) -> None:
    with (tmp_path / "big.txt").open("wb") as file:
        for _ in range(100):
            file.write(b"All work and no play. " * 47_663)
    # With less memory than decoding it would take: refused before that.
    little = settings.model_copy(update={"extract_memory_mb": 150})
    assert "more than 20,000,000 characters" in _fault(tmp_path / "big.txt", little, TooLarge)


def test_zip_bombs_are_refused_from_their_directory(tmp_path: Path, settings: Settings) -> None:
    # With less memory than it would unpack to.
    little = settings.model_copy(update={"extract_memory_mb": 150})
    assert "would unpack to 250 MB" in _fault(zip_bomb(tmp_path / "bomb.docx", megabytes=250), little, TooLarge)
    _fault(zip_bomb(tmp_path / "liar.docx", megabytes=60, lie=True), settings)


def test_zip_of_very_many_parts(tmp_path: Path, settings: Settings) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "many.docx", "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
        for number in range(6000):
            archive.writestr(f"{number}.bin", b"")
    assert "6001 parts" in _fault(tmp_path / "many.docx", settings, TooLarge)


@pytest.mark.parametrize(
    "declaration",
    [b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'],
)
def test_entities_in_docx_are_refused(tmp_path: Path, settings: Settings, declaration: bytes) -> None:
    path = docx(tmp_path / "x.docx", [(0, PLANTS)])
    body = b'<?xml version="1.0"?>' + declaration + b"<x>&e;&b;</x>"
    assert "XML entities" in _fault(with_part(path, "word/document.xml", body), settings)


def test_reader_that_needs_too_much_time_or_memory_is_stopped(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of tags inside one another: little to read, much to build.
    (tmp_path / "deep.html").write_text("<html><body>" + "<div><p>word </p>" * 400_000)
    little_memory = Settings(home=settings.home, extract_memory_mb=150)
    assert "needs more than 150 MB" in _fault(tmp_path / "deep.html", little_memory)
    little_time = settings.model_copy(update={"extract_memory_mb": 8000, "extract_seconds": 1})
    assert "took more than 1 seconds" in _fault(tmp_path / "deep.html", little_time)
    # Of the processor it may have an hour, but not by the clock.
    monkeypatch.setattr(extracting, "_wall", lambda _seconds: 1)
    patient = settings.model_copy(update={"extract_memory_mb": 8000, "extract_seconds": 3600})
    assert "still being read after 1 seconds" in _fault(tmp_path / "deep.html", patient)


def test_missing_file_and_link(tmp_path: Path, settings: Settings) -> None:
    _fault(tmp_path / "gone.pdf", settings, NotFound)
    (tmp_path / "secret.txt").write_text(PLANTS)
    (tmp_path / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "is a link" in _fault(tmp_path / "link.txt", settings)


# --- names -----------------------------------------------------------------------------------------------------------
@given(st.text(max_size=400))
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_cleaned_name_is_harmless(name: str) -> None:
    clean = clean_name(name)
    assert 0 < len(clean) <= 200
    assert "/" not in clean and "\\" not in clean and "\0" not in clean and clean not in (".", "..")
    assert clean.isprintable()
    assert clean_name(clean) == clean


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "document"),
        ("..", "document"),
        ("a\0b\nc.pdf", "a b c.pdf"),
        ("gpj.\u202efdp.exe", "gpj. fdp.exe"),
        ("x" * 300 + ".pdf", "x" * 196 + ".pdf"),
        ("bad\udcff.txt", "bad?.txt"),
    ],
)
def test_names_lose_folders_and_control_marks(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket()",
        "subprocess.run(['true'])",
        "os.system('true')",
        "pickle.loads(b'cos\\nsystem\\n(S\"true\"\\ntR.')",
        "open(sys.argv[1], 'wb', buffering=0).write(b'x')",
        "bytearray(2**30)",
    ],
)
def test_the_reader_can_do_nothing_but_read(tmp_path: Path, attempt: str) -> None:
    code = (
        "import os, pickle, socket, subprocess, sys; from appliance.knowledge.extract_child import limit; limit(2**29, 5)\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try: {attempt}\n"
        "except (OSError, MemoryError): sys.stdout.write('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=CLONE, capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused"


@pytest.mark.parametrize("walls", ["pass", "limit(2**29, 5)", "no_network()"])
def test_the_reader_reaches_no_port_that_its_parent_reaches(walls: str) -> None:
    """Without walls it does, so this can fail; an empty network is enough, where the system gives one, and so is the hook."""
    code = (
        "import os, sys; from appliance.knowledge.extract_child import limit, no_network\n"
        "before = os.readlink('/proc/self/ns/net')\n"
        f"{walls}\n"
        "if sys.argv[2] == 'no_network()' and os.readlink('/proc/self/ns/net') == before: sys.exit('no namespace')\n"
        "import socket\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "except OSError: sys.stdout.write('refused')\n"
        "else: sys.stdout.write('connected')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            pass
        command = [sys.executable, "-c", code, str(port), walls]
        done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=False)
        if done.stderr.strip() == "no namespace":
            pytest.skip("this system gives no process a network of its own")
        assert done.stdout == ("connected" if walls == "pass" else "refused"), done.stderr
        server.setblocking(False)
        if walls != "pass":
            with pytest.raises(BlockingIOError):
                server.accept()
        else:
            server.accept()[0].close()
