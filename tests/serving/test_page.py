"""The page of a server in a real browser, with a model that finds what is red, green or blue."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visits import (
    CARD,
    HEIGHT,
    HOSTILE,
    TOKEN,
    WIDTH,
    Visit,
    a_browser,
    encoded,
    given,
    indexed,
    opened_panel,
    scene,
    serving,
    slide,
)

pytest.importorskip("patchform.serving.app", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def browser():
    with a_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("a server")) as place:
        yield place


@pytest.fixture
def visit(browser, address):
    made = []

    def begin(**options):
        made.append(Visit(browser, address, **options))
        return made[-1]

    yield begin
    for one in made:
        outside = [request.url for request in one.requests if not request.url.startswith((address, "blob:"))]
        assert outside == []
        assert not any(TOKEN in request.url for request in one.requests)
        one.context.close()


@pytest.mark.slow
def test_pictures_are_answered_side_by_side(visit):
    one = visit()
    page = one.open()
    one.add(given("first.png"), given("second.png"))
    assert page.locator(".words").all_inner_texts() == [f"2 objects: red, {HOSTILE}"] * 2
    left, right = (page.locator(".picture").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    for word in ("instance segmentation", "raw_pixels/nano", f"{HEIGHT} x {WIDTH} pixels"):
        assert word in page.inner_text("#facts")
    page.get_by_role("button", name="Remove first.png").click()
    assert page.locator(".picture h2").all_inner_texts() == ["second.png"]
    assert one.complaints == []


@pytest.mark.slow
def test_names_of_classes_are_text(visit):
    one = visit()
    page = one.open()
    one.add(given('<i onclick="bad">.png'))
    opened_panel(page)
    assert page.locator("#controls img, #controls b, .picture img, .picture i").count() == 0
    assert page.evaluate("window.bad") is None
    assert page.locator(".classes .name").nth(2).inner_text() == HOSTILE
    assert one.complaints == []


@pytest.mark.slow
def test_thresholds_filter_and_opacity_change_what_is_drawn(visit):
    one = visit()
    page = one.open()
    one.add(given())
    opened_panel(page)
    asked = len([request for request in one.requests if "predict" in request.url])
    own, states = one.pixels(), []
    assert one.shown() == 2

    def changed():
        states.append(one.pixels())
        return not any((states[-1] == before).all() for before in [own, *states[:-1]])

    slide(page, "#threshold", 0.1)
    assert changed()
    assert one.shown() == 3  # the green thing is there from 0.2 on
    slide(page, "#threshold", 0.8)
    assert changed()
    assert one.shown() == 1
    page.get_by_role("button", name="Back to the model's own thresholds").click()
    assert (one.pixels() == own).all()
    page.get_by_label("A threshold for each class").check()
    slide(page, ".classes input[type=range] >> nth=0", 0.97)  # red alone
    assert changed()
    assert page.inner_text(".words") == f"1 object: {HOSTILE}"
    page.get_by_role("button", name="Back to the model's own thresholds").click()
    page.locator(".classes input[type=checkbox]").nth(0).uncheck()
    one.frame()
    assert one.shown() == 1
    page.locator(".classes input[type=checkbox]").nth(0).check()
    slide(page, "#opacity", 0)
    assert changed()
    slide(page, "#opacity", 100)
    assert changed()
    page.get_by_label("Names on the picture").uncheck()
    assert changed()
    assert len([request for request in one.requests if "predict" in request.url]) == asked == 1
    assert one.complaints == []


@pytest.mark.slow
def test_masks_cover_the_pixels_that_they_should(visit):
    from pycocotools import mask as coco

    one = visit()
    page = one.open()
    dice = np.random.default_rng(0)
    planes = [dice.random((37, 53)) < share for share in (0.02, 0.5, 0.97)]
    planes += [np.zeros((37, 53), bool), np.ones((37, 53), bool), np.pad(np.ones((200, 3), bool), ((0, 0), (90, 0)))]
    for plane in planes:
        runs = coco.encode(np.asfortranarray(plane, np.uint8))
        code = """async ([height, width, text]) => { const { Layer, runsOf } = await import("/masks.js");
            const layer = new Layer(height, width); layer.take(1, runsOf(text)); return [...layer.owners]; }"""
        owners = page.evaluate(code, [*plane.shape, runs["counts"].decode()])
        assert (np.array(owners).reshape(plane.shape) == plane).all()
        assert sum(owners) == coco.area(runs)
    large = np.zeros((3000, 2000), bool)  # more than a layer has: 2 million of 6
    large[300:1200, 200:1700] = True
    runs = coco.encode(np.asfortranarray(large, np.uint8))["counts"].decode()
    shares = code.replace("[...layer.owners]", "layer.owners.reduce((sum, one) => sum + one, 0) / layer.owners.length")
    assert page.evaluate(shares, [*large.shape, runs]) == pytest.approx(large.mean(), rel=0.01)

    one.add(given())
    opened_panel(page)
    page.get_by_label("Names on the picture").uncheck()
    slide(page, "#threshold", 0.9)
    slide(page, "#opacity", 100)
    page.evaluate("document.querySelector('canvas').scrollIntoView()")
    blue = np.array([0, 0, 255])  # of the first class
    drawn = one.pixels()
    scale = min(drawn.shape[0] / HEIGHT, drawn.shape[1] / WIDTH)
    covered = (np.abs(drawn[..., :3].astype(int) - blue).sum(-1) < 60).sum()
    thing_itself = scene()[1].sum() * scale**2  # and the lines of its box
    assert thing_itself * 0.98 < covered < thing_itself * 1.1


@pytest.mark.slow
def test_a_turned_photograph_lies_as_it_is_seen(visit):
    one = visit()
    page = one.open()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right is shown
    one.add(given("phone.jpg", encoded(np.rot90(scene()[0]).copy(), "JPEG", exif=turned, quality=95), "image/jpeg"))
    assert page.locator(".warning").count() == 0
    assert f"{WIDTH} × {HEIGHT}" in page.inner_text(".picture .note")
    x, y, width, height = map(int, page.locator("td.box").first.inner_text().split(", "))
    assert [x, y, width, height] == pytest.approx([20, 30, 121, 101], abs=3)
    drawn = one.pixels()
    scale = min(drawn.shape[0] / HEIGHT, drawn.shape[1] / WIDTH)
    left, top = (drawn.shape[1] - WIDTH * scale) / 2, (drawn.shape[0] - HEIGHT * scale) / 2
    red, green, blue, _ = drawn[int(top + 80 * scale), int(left + 80 * scale)]
    assert red > 80  # the thing
    assert blue > 80  # its mask, half of it
    assert green < 40


@pytest.mark.slow
def test_a_bad_file_harms_no_other(visit):
    one = visit()
    page = one.open()
    one.add(given("bad.png", b"no picture at all"), given(), given("large.png", bytes(3_000_001)))
    failed = page.locator(".veil.failed .state")
    assert failed.count() == 2
    assert "picture" in failed.nth(0).inner_text()
    assert failed.nth(1).inner_text().startswith("This file has 3.0 MB, the server takes 3.0 MB.")
    assert page.locator(".picture").nth(1).locator(".words").inner_text().startswith("2 objects")
    assert len([request for request in one.requests if "predict" in request.url]) == 2  # the large one was not sent
    assert [text for text in one.complaints if "400" not in text] == []


@pytest.mark.slow
def test_a_busy_server_is_asked_again(visit):
    one = visit()
    page = one.open()
    busy = {"code": "busy", "message": "too many wait", "request": "1"}
    page.route("**/predict*", lambda route: route.fulfill(status=503, headers={"retry-after": "1"}, json=busy), times=1)
    one.add(given())
    assert page.inner_text(".words").startswith("2 objects")


@pytest.mark.slow
def test_a_picture_is_pasted_or_dropped(visit):
    one = visit()
    page = one.open()
    hand_over = """([text, kind]) => { const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
        const data = new DataTransfer(); data.items.add(new File([bytes], "image.png", { type: "image/png" }));
        const Kind = kind === "paste" ? ClipboardEvent : DragEvent, bubbles = true, cancelable = true;
        const event = new Kind(kind, { clipboardData: data, dataTransfer: data, bubbles, cancelable });
        document.body.dispatchEvent(event); return event.defaultPrevented; }"""
    for count, kind in enumerate(("paste", "drop"), start=1):
        assert page.evaluate(hand_over, [base64.b64encode(encoded(scene()[0])).decode(), kind])
        one.settled(count)
    assert all(text.startswith("2 objects") for text in page.locator(".words").all_inner_texts())
    assert one.complaints == []


@pytest.mark.slow
def test_the_keyboard_is_enough(visit):
    one = visit()
    choosers = []
    one.page.on("filechooser", lambda chooser: choosers.append(chooser))  # early: a late one misses the first
    page = one.open()

    def focused():
        return page.evaluate(
            """() => { const one = document.activeElement;
            return one === document.body ? "" : one.getAttribute("aria-label") ?? one.textContent; }"""
        )

    def reach(words, most=30):
        for _ in range(most):
            page.keyboard.press("Tab")
            if words in focused():
                return
        raise AssertionError(words)

    reach("Choose pictures")
    page.keyboard.press("Enter")
    for _ in range(100):
        page.wait_for_timeout(0 if choosers else 50)
    choosers[0].set_files([given()])
    one.settled(1)
    reach("Plus and minus zoom")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    whole = one.pixels()
    page.keyboard.press("+")
    near = one.pixels()
    assert (near != whole).any()
    page.keyboard.press("ArrowRight")
    assert (one.pixels() != near).any()
    page.keyboard.press("0")
    assert (one.pixels() == whole).all()
    reach("Fit the whole picture")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert (one.pixels() == near).all()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert (one.pixels() == whole).all()
    reach("red")
    page.keyboard.press("Space")
    assert page.locator("tbody [aria-pressed=true]").inner_text() == "red"
    assert (one.pixels() != whole).any()
    assert one.complaints == []


@pytest.mark.slow
def test_the_wheel_and_the_pointer_move_the_picture(visit):
    one = visit()
    page = one.open()
    one.add(given())
    whole, frame = one.pixels(), page.locator("canvas").bounding_box()
    page.mouse.move(frame["x"] + 100, frame["y"] + 100)
    page.mouse.wheel(0, -200)
    assert (one.pixels() == whole).all()  # the page scrolls, unless the picture is meant
    page.mouse.wheel(0, 200)
    page.locator("canvas").focus()
    page.mouse.wheel(0, -300)
    near = one.pixels()
    assert (near != whole).any()
    page.mouse.down()
    page.mouse.move(frame["x"] + 60, frame["y"] + 70, steps=3)
    page.mouse.up()
    assert (one.pixels() != near).any()


@pytest.mark.slow
def test_what_is_copied_asks_the_same_again(visit, tmp_path):
    one = visit()
    page = one.open()
    one.context.grant_permissions(["clipboard-read", "clipboard-write"])
    one.add(given("my scene.png"))
    page.locator(".texts summary").click()
    page.get_by_role("button", name="Copy curl").click()
    line = page.evaluate("navigator.clipboard.readText()")
    known = '-H "Authorization: Bearer $PATCHFORM_TOKEN"'
    sent = '-H "Content-Type: image/png" --data-binary "@my scene.png"'
    assert line == f'curl {known} {sent} "{one.address}/predict"'
    (tmp_path / "my scene.png").write_bytes(given()["buffer"])
    if os.name == "posix" and shutil.which("curl"):
        by_hand = subprocess.run(
            line, shell=True, cwd=tmp_path, env=os.environ | {"PATCHFORM_TOKEN": TOKEN}, capture_output=True
        )
        assert json.loads(by_hand.stdout)["size"] == [HEIGHT, WIDTH]
    page.get_by_role("button", name="Copy JSON").click()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    asked = one.context.request.post(
        f"{one.address}/predict", data=given()["buffer"],
        headers={"content-type": "image/png", "authorization": f"Bearer {TOKEN}"},
    )  # fmt: skip
    assert copied == asked.json()
    opened_panel(page)
    slide(page, "#threshold", 0.1)
    one.frame()
    assert page.locator(".texts pre").first.inner_text().endswith('/predict?threshold=0.1"')


@pytest.mark.slow
def test_the_token_is_asked_for_and_kept(visit):
    one = visit()
    page = one.open(token=None)
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#door-wrong').textContent === 'That is not it.'")
    page.wait_for_selector("#door[open]")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#choose:enabled")
    one.add(given())
    page.locator(".texts summary").click()
    line = page.locator(".texts pre").first.inner_text()
    assert line.startswith('curl -H "Authorization: Bearer $PATCHFORM_TOKEN" ')
    page.reload()
    page.wait_for_selector("#choose:enabled")
    assert not page.locator("#door").is_visible()
    assert [text for text in one.complaints if "401" not in text] == []


@pytest.mark.slow
def test_a_token_that_nobody_gives_may_come_later(visit):
    one = visit()
    page = one.open(token=None)
    page.keyboard.press("Escape")
    page.wait_for_selector("#again:visible")
    assert "token" in page.inner_text("#wrong")
    page.click("#again")
    page.wait_for_selector("#door[open]")


@pytest.mark.slow
def test_a_phone_shows_all_without_scrolling_aside(visit):
    one = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = one.open()
    assert page.locator("#photograph").is_visible()
    assert page.get_attribute("#camera", "capture") == "environment"
    one.add(given("a-name-of-a-file-that-is-longer-than-any-telephone-is-wide.png"))
    opened_panel(page)
    page.get_by_label("A threshold for each class").check()
    page.locator(".texts summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = """() => [...document.querySelectorAll("button, summary, input[type=range], .check")]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 43.5).map((one) => one.outerHTML)"""
    assert page.evaluate(small) == []


@pytest.mark.slow
def test_regions_lie_over_the_picture_and_are_named_by_number(visit):
    """Two classes of one color, which the palette has beyond 255: the numbers of the file tell them apart."""
    one = visit()
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[:, 100:], classes[200:] = 1, 255
    noise = np.random.default_rng(0).integers(0, 256, (31, 45)).astype(np.uint8)
    files = {"classes.png": base64.b64encode(indexed(classes)).decode()}
    answer = {"shares": {"sky": 0.6, "road": 0.4}, "size": [HEIGHT, WIDTH], "files": files}
    one.page.route("**/card", lambda route: route.fulfill(json=CARD))
    one.page.route("**/predict*", lambda route: route.fulfill(json=answer))
    page = one.open()
    code = """async (text) => { const { decode } = await import("/indexed.js");
        const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
        return [...(await decode(bytes)).classes]; }"""
    for level in (1, 9):
        png = indexed(noise, compress_level=level)
        assert page.evaluate(code, base64.b64encode(png).decode()) == noise.ravel().tolist()
    one.add(given())
    assert page.inner_text(".words") == "sky 60\u00a0%, road 40\u00a0%"
    opened_panel(page)
    slide(page, "#opacity", 100)

    def covered():
        return (one.pixels()[..., :3] == [0, 255, 0]).all(-1).sum()

    drawn = one.pixels()
    scale = min(drawn.shape[0] / HEIGHT, drawn.shape[1] / WIDTH)
    assert covered() == pytest.approx((classes != 255).sum() * scale**2, rel=0.02)
    page.locator(".classes input").nth(1).uncheck()
    assert covered() == pytest.approx((classes == 0).sum() * scale**2, rel=0.02)
    frame = page.locator("canvas").bounding_box()
    left = (frame["width"] - WIDTH * scale) / 2
    page.mouse.move(frame["x"] + left + 150 * scale, frame["y"] + 20)
    assert page.inner_text(".pointed") == "sky"
    assert one.complaints == []


@pytest.mark.slow
def test_films_play_beside_their_labels(visit):
    one = visit()
    card = CARD | {"task": "video_classification", "videos": True}
    top = [{"label": "road", "score": 0.9}, {"label": "sky", "score": 0.1}]
    answer = {"label": "road", "score": 0.9, "top": top, "size": [HEIGHT, WIDTH]}
    one.page.route("**/card", lambda route: route.fulfill(json=card))
    one.page.route("**/predict*", lambda route: route.fulfill(json=answer))
    page = one.open()
    assert page.get_attribute("#files", "accept") == "video/*"
    one.add(given("walk.mp4", b"frames", "video/mp4"))
    assert page.get_attribute("video", "src").startswith("blob:")
    assert page.locator(".labels li").all_inner_texts() == ["road\n90\u00a0%", "sky\n10\u00a0%"]
    assert not page.locator("#controls").is_visible()
    (asked,) = [request for request in one.requests if "predict" in request.url]
    assert asked.headers["content-type"] == "video/mp4"
    assert one.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_for_axe(visit, scheme):
    place = os.environ.get("PATCHFORM_AXE")
    if not place:
        pytest.skip("PATCHFORM_AXE names no axe.min.js (npm pack axe-core)")
    script = Path(place).read_text(encoding="utf-8")
    for options in ({}, {"viewport": {"width": 360, "height": 740}, "has_touch": True}):
        one = visit(color_scheme=scheme, **options)
        page = one.open()
        page.evaluate(script)
        found = [page.evaluate("axe.run()")]
        one.add(given(), given("bad.png", b"nothing"))
        opened_panel(page)
        page.get_by_label("A threshold for each class").check()
        page.locator(".texts:visible summary").first.click()
        found.append(page.evaluate("axe.run()"))
        wrong = [(one["id"], [node["html"] for node in one["nodes"]]) for run in found for one in run["violations"]]
        assert wrong == []
