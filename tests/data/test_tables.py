"""Tables as people bring them: how each is written is found, forced by a flag, or refused with a way out."""

from __future__ import annotations

import gzip

import pytest

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import iter_judgements, read_judgements, read_parsed
from taosr1.runtime.bad_rows import BadRows

ROWS = [("rote schuhe", "Schuhe Größe 42", "4"), ("küche", "Messer für 19,90 €", "1"), ("caffè", "Tasse „Ombra“", "3")]


def put(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def spelled(delimiter, *, end="\n"):
    return "".join(delimiter.join(cells) + end for cells in (("query", "title", "grade"), *ROWS))


def found(path, **flags):
    return [(row.query, row.title, str(row.grade)) for row in read_judgements(path, ReadFlags(**flags))]


def refusal(path, **flags):
    with pytest.raises(ValueError) as caught:
        read_judgements(path, ReadFlags(**flags))
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize(("delimiter", "name"), [(";", "a.csv"), ("\t", "a.csv"), ("|", "a.txt"), ("\t", "a.txt")])
def test_delimiter_and_encoding_are_found_by_content_and_said(tmp_path, capsys, delimiter, name, encoding):
    text = spelled(delimiter, end="\r\n")
    for path, data in ((tmp_path / name, text.encode(encoding)), (tmp_path / f"{name}.gz", text.encode(encoding))):
        assert found(put(path, gzip.compress(data) if path.suffix == ".gz" else data)) == ROWS
        said = capsys.readouterr().err
        assert f"{path}: read " in said and ("tabs" if delimiter == "\t" else repr(delimiter)) in said
        expected = {"utf-16": "UTF-16 LE", "utf-16-le": "UTF-16 LE", "utf-16-be": "UTF-16 BE", "cp1252": "cp1252"}
        assert (
            (f"in {expected[encoding]}, " in said) if encoding in expected else ("in " not in said.split(": read ")[1])
        )


def test_what_the_name_promises_needs_no_word(tmp_path, capsys):
    assert found(put(tmp_path / "a.tsv", spelled("\t"))) == ROWS
    put(tmp_path / "a.csv", 'query,title,grade\nred mug,"Mug, red",4\n')
    assert found(tmp_path / "a.csv", delimiter=",", encoding="utf-8") == [("red mug", "Mug, red", "4")]
    assert found(put(tmp_path / "a.jsonl", '{"query": "ä", "title": "b", "grade": 4}\n')) == [("ä", "b", "4")]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hint", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
def test_the_line_that_excel_puts_first_names_the_delimiter(tmp_path, hint):
    path = put(tmp_path / "a.csv", f"{hint}\r\nquery;title, long;grade\r\na;b;4\r\n")
    assert found(path, columns='"title, long=title"') == [("a", "b", "4")]
    assert "is not --delimiter ," in refusal(path, delimiter=",")
    assert "names no delimiter that is read" in refusal(put(path, "sep=:\nquery:title\n"))


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("query,title;grade\na,b;4\n", {}, "1: ',' and ';' could both separate the cells: say which, --delimiter"),
        ("Anfrage|Titel,kurz\na|b,c\nd|e,f\n", {}, "1: ',' and '|' could both separate the cells"),
        ("query\ttitle\na\tb\n", {"delimiter": ";"}, "1: no ';' in the header, but tabs separate it into 2 names"),
        ("query,title\na,b\n", {"delimiter": "tab"}, "1: no tabs in the header, but ',' separates it into 2 names"),
        ("query;title\na;b\n", {"delimiter": "::"}, "--delimiter is '::', expected , ; | or tab"),
        ("query;title\na,b\nc,d\n", {}, "1: cells of the header are separated by ';', those of the rows by ','"),
        ("query,title\na,b\n", {"quotes": "never"}, "--quotes is 'never', expected enclose or text"),
    ],
)
def test_a_delimiter_that_is_wrong_or_cannot_be_told_is_a_question(tmp_path, text, flags, message):
    assert message in refusal(put(tmp_path / "a.csv", text), **flags)


@pytest.mark.parametrize(
    ("text", "written", "flag", "message"),
    [
        ("größe", "utf-8", "cp1252", "2: this line is UTF-8, as all others, not cp1252: leave --encoding out"),
        ("größe", "utf-16", "utf-8", "1: this file is UTF-16 LE, not utf-8: leave --encoding out"),
        ("größe", "utf-8", "utf-16", "1: this file is UTF-8, not utf-16: leave --encoding out"),
        ("größe", "utf-8-sig", "latin-1", "1: this file begins with the mark of UTF-8, not iso8859-1"),
        ("19 €", "cp1252", "latin-1", "2: a control character in iso8859-1: --encoding cp1252"),
        ("größe", "utf-8", "klingon", "--encoding is 'klingon', expected one such as utf-8"),
        ("größe", "utf-32", "", "this file is UTF-32, expected UTF-8: iconv -f UTF-32 -t UTF-8"),
        (
            "größe",
            "cp1252",
            "",
            "2: not UTF-8: byte 0xf6; --encoding names another one: cp1252 (Western Europe) reads 'größe'",
        ),
    ],
)
def test_an_encoding_that_is_wrong_or_cannot_be_told_is_a_question(tmp_path, text, written, flag, message):
    path = put(tmp_path / "a.csv", f"query,title\n{text},b\n".encode(written))
    assert message in refusal(path, encoding=flag)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1251", ("красные туфли", "чайник")), ("cp1250", ("żółte buty", "łóżko")), ("gbk", ("红色连衣裙", "手机壳")),
        ("cp1250", ("černé boty", "příbor žlutý")), ("shift_jis", ("靴 赤い", "スマホ")),
        ("cp1254", ("kırmızı ayakkabı", "şişe")),
        ("cp1253", ("κόκκινα παπούτσια", "φλιτζάνι")),
    ],
)  # fmt: skip
def test_text_in_another_encoding_is_never_taken_for_cp1252_but_read_with_the_flag(tmp_path, encoding, words):
    path = put(tmp_path / "a.csv", ("query,title\n" + "".join(f"{word},{word}\n" for word in words)).encode(encoding))
    assert "a.csv:2: not UTF-8: byte" in refusal(path) and "--encoding" in refusal(path)
    assert [row.query for row in read_judgements(path, ReadFlags(encoding=encoding))] == list(words)


def test_a_damaged_line_among_good_ones_stays_one_bad_row(tmp_path):
    for good in (b"caf\xc3\xa9,b\n", b"cafe,b\n"):
        path = put(tmp_path / "a.csv", b"query,title\n" + good * 20 + b"caf\xe9 cr\xe8me br\xfbl\xe9e,b\n" + good * 20)
        assert "a.csv:22: not UTF-8: byte 0xe9" in refusal(path)
        assert len(read_judgements(path, max_bad_rows=1)) == 40


def test_cp1252_is_found_behind_many_lines_of_ascii_and_while_a_file_is_streamed(tmp_path, capsys):
    lines = b"query,title\n" + b'"a, b",c\n' * 3000 + "café,Größe\nnaïve,b\n".encode("cp1252")
    rows = list(iter_judgements(put(tmp_path / "a.csv", lines)))
    assert (rows[-2].query, rows[-2].title, len(rows)) == ("café", "Größe", 3002)
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'a.csv'}: read in cp1252\n")


PRODUCTS = [
    ["1", "monitor", '24" monitor', "4"], ["2", "monitor", '"Ultra" monitor', "3"], ["3", "tv", '"55 inch tv', "2"],
    ["4", "hose", 'hose 3/4"', "1"], ["5", "monitor", 'arm for 27" and 32"', "2"], ["6", "desk", "desk", "4"],
]  # fmt: skip


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 1, 3, 2), (2, 0, 1, 3)])
def test_quotes_of_a_table_without_quoting_are_characters_and_no_row_is_lost(tmp_path, capsys, delimiter, order):
    names = [["query_id", "query", "title", "grade"][at] for at in order]
    lines = [delimiter.join(names), *(delimiter.join(row[at] for at in order) for row in PRODUCTS)]
    rows = read_judgements(put(tmp_path / "a.csv", "\n".join(lines) + "\n"))
    assert [[row.query_id, row.query, row.title, str(row.grade)] for row in rows] == PRODUCTS
    assert "with quotes as text (enclosing, they would swallow" in capsys.readouterr().err


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize(
    "title",
    ["two\nlines", "a{0}b{0}c\nd", 'the "best"\nof all', "one\n\nthree\r\nfour", '"', "x\n1{0}y{0}z\nlast"],
)
def test_quoted_cells_keep_their_delimiters_quotes_and_line_breaks(tmp_path, capsys, delimiter, title):
    title = title.format(delimiter)
    enclosed = '"' + title.replace('"', '""') + '"'
    rows = [["7", "mug", enclosed, "4"], ["8", "mug", "plain", "1"]]
    text = "".join(delimiter.join(row) + "\r\n" for row in [["query_id", "query", "title", "grade"], *rows])
    assert [row.title for row in read_judgements(put(tmp_path / "a.csv", text))] == [title, "plain"]
    assert "quotes" not in capsys.readouterr().err


def test_where_quotes_can_be_read_in_two_ways_the_line_is_refused_and_either_flag_reads_it(tmp_path):
    text = 'query,title\nboots,"Boots for men\nred, warm"\nmug,"Mug, red"\n'
    path = put(tmp_path / "a.csv", text)
    message = refusal(path)
    assert "a.csv:2: one cell in quotes holds 2 lines that look like rows" in message and "counted as 2 rows" in message
    assert "--quotes text" in message and "--quotes enclose" in message
    assert [row.title for row in read_judgements(path, ReadFlags(quotes="enclose"))] == [
        "Boots for men\nred, warm", "Mug, red"
    ]  # fmt: skip
    ledger = BadRows(path, 2)
    assert [row.title for row in iter_judgements(path, ledger)] == ["Mug, red"] and ledger.skipped == 2


def test_a_quote_that_is_lost_in_a_quoted_table_never_takes_rows_along_in_silence(tmp_path):
    rows = [f'{number},mug {number},"Mug, ""no {number}""",{1 + number % 4}' for number in range(1, 9)]
    rows[2] = '3,mug 3,"Mug no 3,4'  # its end is missing
    rows[5] = '6,mug 6,Mug no 6",3'  # its beginning is missing
    path = put(tmp_path / "a.csv", "query_id,query,title,grade\n" + "\n".join(rows) + "\n")
    assert "a.csv:4: " in refusal(path) and "--max-bad-rows" in refusal(path)
    kept = read_judgements(path, max_bad_rows=6)
    assert {row.query_id for row in kept} >= {"1", "2", "8"} and all("\n" not in row.title for row in kept)


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        (",query,title\n0,a,b\n1,c,d\n", ["b", "d"]),  # the index of pandas
        ("query;title;;\na;b;;\nc;d;;\n", ["b", "d"]),  # Excel, where cells further right were emptied
        ('"query","title"\n"a","b\nb, c"\n"c","d"\n', ["b\nb, c", "d"]),
    ],
)
def test_columns_without_a_name_at_the_edges_and_quoted_headers_are_read(tmp_path, text, titles):
    assert [row.title for row in read_judgements(put(tmp_path / "a.csv", text))] == titles
    assert "cell below no name" in refusal(put(tmp_path / "b.csv", "query,title,\na,b,c\n"))


def test_a_price_stays_as_it_is_written(tmp_path):
    prices = ["1.299,00 €", "1,299.00", "CHF 1'299.–", "19,90"]
    text = "query;title;price\n" + "".join(f"a;b;{price}\n" for price in prices)
    assert [row.price for row in read_judgements(put(tmp_path / "a.csv", text))] == prices


@pytest.mark.parametrize(
    ("name", "data", "way"),
    [
        ("a.csv", b"PK\x03\x04rest of a zip file", "unpack it first with unzip"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "save it as .xlsx, or as CSV UTF-8"),
        ("a.xls", b"<html><table><tr><td>query</td></tr></table>", "this is a web page"),
        ("a.csv", b"BZh91AY&SYrest", "unpack it first with bunzip2"),
        ("a.ods", b"PK\x03\x04mimetype", "soffice --headless --convert-to csv a.ods"),
        ("a.zip", b"PK\x03\x04", "unzip a.zip"),
        ("a.pkl", b"\x80\x04", "save it as parquet or CSV"),
        ("a.csv", b"PAR1\x15\x00", "give the file a name that ends in .parquet"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_conversion(tmp_path, name, data, way):
    assert way in refusal(put(tmp_path / name, data))


def test_a_file_is_read_as_the_kind_that_the_caller_says(tmp_path):
    path = put(tmp_path / "spooled", "query;title\na;b\n")
    assert [row.title for row, _ in read_parsed(path, lambda raw, row: None, kind=".csv")] == ["b"]
    assert [row.title for row in read_judgements(put(tmp_path / "a.xls", "query\ttitle\na\tb\n"))] == ["b"]


@pytest.mark.parametrize(
    ("encoding", "whose", "words"),
    [
        ("cp1250", "Central Europe", ["żółty kubek", "stół dębowy", "łóżko dziecięce"]),
        ("cp1250", "Central Europe", ["női cipő", "bőr táska", "esernyő"]),
        ("cp1251", "Cyrillic", ["красная кружка", "стол дубовый", "Лампа"]),
        ("mac-roman", "old Macs", ["rote Mütze", "Tür grün", "Müller Käse"]),
        ("mac-roman", "old Macs", ["fête", "crème brûlée", "vélo été"]),
        ("cp850", "DOS", ["rote Mütze", "Möbel", "Käse"]),
        ("shift_jis", "Japanese", ["赤いマグ", "机", "木の机"]),
    ],
)
def test_an_encoding_that_cannot_be_told_is_shown_by_its_words(tmp_path, capsys, encoding, whose, words):
    path = tmp_path / "a.csv"
    path.write_bytes("".join(f"{row}\n" for row in ["query,title", *(f"{w},{w} 1" for w in words)]).encode(encoding))
    first = next(part for word in words for part in word.split() if not part.isascii())
    assert f"{encoding} ({whose}) reads {first!r}" in refusal(path)
    assert [row.query for row in read_judgements(path, ReadFlags(encoding=encoding))] == words
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "wrong", "words"),
    [
        ("cp1250", "cp1252", ["żółty kubek", "stół dębowy"]),
        ("cp1251", "latin-1", ["красная кружка", "стол"]),
        ("mac-roman", "cp1252", ["rote Mütze", "Tür"]),
        ("cp1252", "mac-roman", ["rote Mütze", "Tür"]),
        ("cp1250", "cp1251", ["żółty kubek", "stół dębowy"]),
        ("cp1252", "cp1251", ["rote Mütze", "Tür"]),
    ],
)
def test_a_wrong_encoding_that_the_user_gives_is_warned_of_with_a_line(tmp_path, capsys, encoding, wrong, words):
    path = tmp_path / "a.csv"
    path.write_bytes("".join(f"{row}\n" for row in ["query,title", *(f"{w},{w} 1" for w in words)]).encode(encoding))
    read_judgements(path, ReadFlags(encoding=wrong))
    assert f"warning: {path}:2: " in (said := capsys.readouterr().err)
    assert f"is --encoding {wrong} right? Others are cp1252 (Western Europe), cp1250 (Central Europe)" in said


@pytest.mark.parametrize(
    ("text", "ids", "said"),
    [
        ("query_id,query,title\n1.0,a,x\n12.0,b,y\n,c,z\n", ["1", "12", ""], "every query_id ends in .0"),
        ("query_id,query,title\n1.0,a,x\n1.1,b,y\n", ["1.0", "1.1"], ""),
        ("query_id,query,title\n007.0,a,x\nv2.0,b,y\n", ["007.0", "v2.0"], ""),
        (
            '{"query_id": 3.0, "query": "a", "title": "x"}\n{"query_id": 4, "query": "b", "title": "y"}\n',
            ["3", "4"],
            "",
        ),
    ],
)
def test_ids_that_a_program_has_made_floats_are_integers_again(tmp_path, capsys, text, ids, said):
    path = put(tmp_path / ("a.jsonl" if text[0] == "{" else "a.csv"), text)
    assert [row.query_id for row in read_judgements(path)] == ids
    assert said in (printed := capsys.readouterr().err) and (said or "ends in .0" not in printed)
