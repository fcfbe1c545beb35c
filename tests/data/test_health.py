"""What is counted by marking is what sets and loops count."""

import numpy as np

import scpo_ray.data.health as module
import scpo_ray.data.loading
from scpo_ray.data.loading import load_preferences
from scpo_ray.data.preferences import PreferencesConfig
from tests.data.test_loading import _preferences, _row


def varied(tmp_path) -> PreferencesConfig:
    rng = np.random.default_rng(0)
    words = ["good", "better one", "[brackets]", '"quoted"', "[a, list]", "a much longer response"]
    rows = [
        _row("AB"[user % 2], f"u{user}", *rng.permutation(words)[:2], prompt=f"p{user % 5}")
        for user in range(40)
        for _ in range(1 + user % 4)
    ]
    return _preferences(tmp_path, rows)


def test_the_counts_of_a_culture_are_those_of_its_pairs_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_PER_CHUNK", 7)
    config = varied(tmp_path)

    data = load_preferences(config, tmp_path / "cache")

    for code, culture in enumerate(data.cultures):
        count = data.counts[culture]
        users, texts, pairs = [], [], []
        for side in data.sides:
            rows = np.flatnonzero(side.culture_codes == code)
            users.append({int(side.cluster_codes[row]) for row in rows})
            texts.append({int(t[row]) for row in rows for t in (side.chosen, side.rejected)})
            pairs += [
                (data.texts[side.chosen[r]].response, data.texts[side.rejected[r]].response)
                for r in rows
            ]
        assert [count.train_users, count.dev_users, count.test_users] == [*map(len, users)]
        assert count.users == len(set.union(*users))
        assert count.train_test_texts == len(texts[0] & texts[2]) > 0
        assert count.longer_chosen_share == np.mean([len(c) > len(r) for c, r in pairs])
        for mark, holds in {
            "brackets": lambda text: text[0] == "[" and text[-1] == "]",
            "quotes": lambda text: text[0] == '"',
            "list": lambda text: text == "[a, list]",
        }.items():
            shares = [
                np.mean([holds(response) for response in side]) for side in zip(*pairs, strict=True)
            ]
            assert count.format_differences[mark] == shares[0] - shares[1]


def test_a_fingerprint_does_not_depend_on_how_much_is_hashed_in_one_go(tmp_path, monkeypatch):
    config = varied(tmp_path)
    whole = load_preferences(config, tmp_path / "cache").fingerprint

    monkeypatch.setattr(scpo_ray.data.loading, "_PAIRS_PER_CHUNK", 5)

    assert load_preferences(config, tmp_path / "cache").fingerprint == whole


def test_a_culture_without_pairs_has_no_shares():
    none, no_marks = np.zeros(1, np.int64), np.zeros((1, 3), np.int64)

    compared = module.ChosenAgainstRejected(none, none, no_marks, no_marks)

    assert (compared.longer_share(0), compared.format_differences(0)) == (None, {})
