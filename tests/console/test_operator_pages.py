"""What an operator does in the console: endpoints, deliveries, owners, hosts and keys."""

from playwright.async_api import expect

from tests.console.conftest import Console


async def test_an_endpoint_shows_how_long_its_runs_take(console: Console):
    async with console.open_page(path="endpoints") as watched:
        await expect(watched.page.get_by_text("fewer than 3 runs have succeeded").first).to_be_visible()
    runner = await console.running.installation.start_runner()
    try:
        for number in range(3):
            await console.running.ann.submit("echo", text=f"run {number}", wait=True)
    finally:
        await runner.stop()
    async with console.open_page(path="endpoints") as watched:
        panel = watched.page.locator("section", has=watched.page.get_by_role("heading", name="echo", exact=True))
        await expect(panel).to_contain_text("(3 runs)")
