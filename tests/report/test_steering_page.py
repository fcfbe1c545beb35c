from scpo_ray.report.overviews import JudgedPrompt, Steering
from scpo_ray.report.steering_page import write_steering_page
from tests.report.test_page import Page, words


def test_a_page_of_picks_has_both_topics_and_balanced_tags(tmp_path):
    judges = ["Chile", "<b>both</b>"]
    prompt = JudgedPrompt(
        place="prompts.jsonl, line 1",
        turns=[("user", "Which bus?")],
        responses=["The red one.", "A taxi."],
        values={judge: [0.5, -0.5] for judge in judges},
        picks={judges[0]: 0, judges[1]: 1},
        parted=1.0,
    )
    agreement = {a: {b: float(a == b) for b in judges} for a in judges}
    found = Steering(judges, 1, 1, agreement, [prompt], truncated=2)

    path = write_steering_page(found, "picks", tmp_path / "picks.html")

    page = Page(path)
    assert page.open == []
    contents = [link for link in page.values("href") if link.startswith("#")]
    assert contents == ["#agreement", "#examples"]
    assert {link[1:] for link in contents} <= set(page.values("id"))
    assert "picked by Chile" in words(path) and "2 responses were cut" in words(path)
