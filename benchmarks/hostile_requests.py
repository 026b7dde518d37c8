"""What hostile clients send to a server: for `serving.py`."""

import struct

from serving_faults import picture

ODD_PATHS = (
    "/models/../../etc/passwd", "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js/../../jobs.py",
    "/static/page.js", "/page/index.html", "/index.html", "/model.json", "/%00", "/page.js%00.png", "/predict/",
    "/predict/../card", "//card", "/PREDICT", "/docs", "/redoc", "/openapi.json/", "/admin", "/load?run=/etc", "/.env",
    "/card.json", "/metrics/../card", "/\\..\\..\\windows", "/..;/card", "/%c0%ae%c0%ae/etc/passwd", "/" + "a" * 8000,
)  # fmt: skip
ADDRESSES = ("http://127.0.0.1:1/a.jpg", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data/", "//evil/a")
FIELDS = (
    "threshold=abc", "threshold=nan", "threshold=inf", "threshold=-1", "threshold=2", "threshold=1e9", "threshold=",
    "threshold=0.1&threshold=0.2", "files=maybe", "model=other", "path=/etc/passwd", "url=http://127.0.0.1:1/",
)  # fmt: skip


def requests(port, token):
    """(name, bytes, statuses that are right) of three hundred requests."""
    host, allowed = f"Host: 127.0.0.1:{port}\r\n", f"Authorization: Bearer {token}\r\n"
    whole = picture((40, 40))

    def ask(line, *headers, body=b"", length=True):
        head = f"{line} HTTP/1.1\r\n{host}" + "".join(f"{one}\r\n" for one in headers)
        head += f"Content-Length: {len(body)}\r\n" if length and body else ""
        return (head + "\r\n").encode("latin-1") + body

    bearer, png = allowed.strip(), "Content-Type: image/png"
    for path in ODD_PATHS:
        yield f"GET {path[:40]}", ask(f"GET {path}", bearer), {400, 404, 405, 414, 431}
        yield f"POST {path[:40]}", ask(f"POST {path}", bearer, png, body=whole), {400, 404, 405, 414, 431}
        yield f"no token {path[:40]}", ask(f"GET {path}"), {400, 401, 404, 405, 414, 431}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "GET", "BREW"):
        yield method, ask(f"{method} /predict", bearer), {400, 405}
        yield f"{method} without a token", ask(f"{method} /card"), {400, 401, 405}
    tokens = (
        "",
        "Bearer",
        "Bearer x",
        f"Bearer {token}x",
        f"Basic {token}",
        token,
        f"Bearer {token[:-1]}",
        "Bearer \xe9",
    )
    for one in tokens:
        yield "a wrong token", ask("POST /predict", f"Authorization: {one}", png, body=whole), {401}
        yield "a wrong token", ask("GET /card", f"Authorization: {one}"), {401}
    yield "a token in the address", ask(f"POST /predict?token={token}", png, body=whole), {401}
    yield "a token in a cookie", ask("POST /predict", f"Cookie: token={token}", png, body=whole), {401}
    for address in ADDRESSES:
        for kind in ("text/plain", "text/uri-list", "image/jpeg", "application/json"):
            body = address.encode()
            yield f"{address} as {kind}", ask("POST /predict", bearer, f"Content-Type: {kind}", body=body), {400, 415}
        yield f"absolute {address}", ask(f"GET {address}", bearer), {400, 404, 405}
    for field in FIELDS:
        yield field, ask(f"POST /predict?{field}", bearer, png, body=whole), {422}
    for number in (1, 100, 5000):
        yield (
            f"{number} headers",
            ask("GET /live", *[f"X-{index}: a" for index in range(number)]),
            {200 if number < 100 else 431, 400},
        )
    yield "a header of 100 kB", ask("GET /live", f"X: {'a' * 100_000}"), {400, 431}
    yield "a header with a line end", ask("GET /live", "X: a\r\n\tb"), {200, 400}
    yield "a header with a NUL", ask("GET /live", "X: a\x00b"), {400}
    yield "control letters in a path", ask("GET /\x1b[31mred\x07"), {400, 404}
    yield "an escape in a path", ask("GET /%1b%5b31m%0a%7b%22fake%22:1%7d", bearer), {404}
    yield "no host", b"GET /live HTTP/1.1\r\n\r\n", {400}
    yield "HTTP/1.0", b"GET /live HTTP/1.0\r\n\r\n", {200, 400}
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}
    yield "HTTP/9.9", b"GET /live HTTP/9.9\r\n\r\n", {400, 505}
    yield "nonsense", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}
    chunked = "Transfer-Encoding: chunked"
    smuggled = (
        ("both lengths", [chunked, "Content-Length: 4"], b"0\r\n\r\nGET /card HTTP/1.1\r\n\r\n"),
        ("two lengths", ["Content-Length: 4", "Content-Length: 40"], b"abcd"),
        ("a length with a sign", ["Content-Length: +4"], b"abcd"),
        ("a length in hexadecimal", ["Content-Length: 0x4"], b"abcd"),
        ("no length at all", ["Content-Length: -1"], b"abcd"),
        ("another coding", ["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
        ("two codings", ["Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
        ("a coding after a space", ["Transfer-Encoding : chunked"], b"0\r\n\r\n"),
        ("a piece with a sign", [chunked], b"-1\r\nab\r\n0\r\n\r\n"),
        ("a piece that is too large", [chunked], b"fffffffffffffffff\r\nab\r\n0\r\n\r\n"),
        ("a piece without a number", [chunked], b"zz\r\nab\r\n0\r\n\r\n"),
        ("compressed", ["Content-Encoding: gzip", "Content-Length: 4"], b"abcd"),
    )
    for name, headers, body in smuggled:
        data = ask("POST /predict", bearer, png, *headers, body=body, length=False)
        yield name, data, {400, 408, 413, 415, 501}
    for field in ('name="file', 'name="../../x"', "name=file; name=other", 'name="file"\x00', ""):
        form = f"--b\r\nContent-Disposition: form-data; {field}\r\n\r\nx\r\n--b--\r\n".encode("latin-1")
        kind = "Content-Type: multipart/form-data; boundary=b"
        yield f"a form with {field!r}", ask("POST /predict", bearer, kind, body=form), {400, 422}
    for boundary in ("", "boundary=", "boundary=" + "x" * 5000, "boundary=\xff"):
        kind = f"Content-Type: multipart/form-data; {boundary}"
        yield f"boundary {boundary[:20]!r}", ask("POST /predict", bearer, kind, body=b"--x\r\n"), {400, 422}
    for name, content in damaged():
        yield name, ask("POST /predict", bearer, png, body=content), {400}


def damaged():
    """Pictures that are none: cut, spoiled, of formats that are not opened, with headers that lie."""
    whole = picture((40, 40))
    for part in range(1, len(whole) - 16):  # what ends a PNG holds no pixels
        yield f"a picture cut at {part}", whole[:part]
    yield "a header of a giant", whole[:16] + struct.pack(">II", 2**30, 2**30) + whole[24:]
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "a pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "a zip", b"PK\x03\x04" + bytes(100)
    yield "a film", b"\x00\x00\x00\x18ftypmp42" + bytes(100)
    yield "nothing but zeros", bytes(1000)
