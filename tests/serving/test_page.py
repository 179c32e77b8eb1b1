"""The page in a browser."""

import pathlib
import threading
import time

import pytest
import uvicorn
from playwright import sync_api

from tests.serving import small_bundle

# Debian's packages; else playwright's own, after `playwright install chromium`.
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-headless-shell")
WIDTHS = [1280, 390]
READY = "#results[aria-busy=false]"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where a service of a small bundle listens; its token is the usual one."""
    path = small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "a")
    service = small_bundle.serve(path)
    config = uvicorn.Config(
        service.app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    service.close()


@pytest.fixture(scope="module")
def browser():
    installed = [path for path in BROWSERS if pathlib.Path(path).exists()]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed[0] if installed else None, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page at a width, gives the token, waits for lists; returns page and complaints."""
    opened = []

    def run(width, **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        opened.append(page)
        page.goto(address)
        page.wait_for_selector(READY)
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.get_by_label("Token of this server").fill(small_bundle.TOKEN)
        page.get_by_role("button", name="Show lists").click()
        page.wait_for_selector(".lists section")
        page.wait_for_selector(READY)
        return page, complaints

    yield run
    for page in opened:
        page.close()


def change(page, act):
    """Does something that asks again, and waits for the answer."""
    page.evaluate("document.querySelector('.lists').replaceChildren()")
    act()
    page.wait_for_selector(".lists section")
    page.wait_for_selector(READY)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_picked_user_sees_lists_side_by_side(visit, width, scheme):
    page, complaints = visit(width, color_scheme=scheme)
    change(page, lambda: page.get_by_label("Some users of the bundle").select_option("2"))
    for name in small_bundle.SCENARIOS:
        section = page.get_by_role("region", name=f"Scenario {name}")
        assert section.locator("li").count() == 10
        assert section.get_by_role("img", name="Gate of the user tower: expert 1").count() == 1
    assert "b1" in page.locator(".lists").inner_text()
    assert page.get_by_role("heading", name="Items that two lists share").is_visible()
    assert "3 lists for a known user. Tower " in page.get_by_role("status").inner_text()
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)
    assert complaints == []


def test_what_was_clicked_later_is_marked(visit):
    page, _ = visit(1280)
    page.get_by_label("Items of a list").fill("40")
    change(page, lambda: page.get_by_label("Items that the user").select_option("none"))
    feed = page.get_by_role("region", name="Scenario feed")
    assert "2 of 2 later clicks in the list" in feed.inner_text()
    marked = feed.locator("li.hit .item")
    assert sorted(text.split()[0] for text in marked.all_inner_texts()) == ["1004", "1005"]


def test_a_typed_history_an_id_and_nobody_are_answered(visit):
    page, complaints = visit(390)
    page.get_by_label("A history of items").check()
    page.get_by_label("Item ids, oldest first").fill("1000, 1001 77")
    change(page, lambda: page.get_by_role("button", name="Show lists").click())
    told = page.get_by_role("status").inner_text()
    assert "3 lists for somebody unknown with a history; 1 event of the history" in told
    change(page, lambda: page.get_by_label("Somebody unknown").check())
    assert "the most popular items" in page.get_by_role("status").inner_text()
    page.get_by_role("combobox", name="Scenario").select_option("deals")
    page.get_by_label("A known user").check()
    page.get_by_label("or an id").fill("7")
    change(page, lambda: page.get_by_label("or an id").press("Enter"))
    assert page.locator(".lists section").count() == 1
    assert "1 list for a known user" in page.get_by_role("status").inner_text()
    assert complaints == []


def test_the_page_is_used_by_keyboard_alone(visit):
    page, _ = visit(1280)
    page.get_by_label("A known user").focus()
    page.keyboard.press("Shift+Tab")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        active = "document.activeElement"
        reached.append(page.evaluate(f"{active}.id || {active}.type"))
        assert page.evaluate(f"getComputedStyle({active}).outlineStyle") == "solid"
    assert reached == [
        *("radio", "sample", "user", "scenario", "k", "exclude", "filter", "token", "submit")
    ]


def test_a_refusal_is_shown(visit):
    page, _ = visit(390)
    page.get_by_label("Items of a list").evaluate("field => { field.max = ''; field.value = 5000 }")
    page.get_by_role("button", name="Show lists").click()
    page.wait_for_selector("#status.wrong")
    told = page.get_by_role("status").inner_text()
    assert told == "Not answered: k: expected at most 1000, got 5000"
