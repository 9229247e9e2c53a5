"""Files, records, preparation, and every kind of data that must be refused."""

import json
import math
import types

import numpy as np
import pytest

from jaxlab import imitation
from jaxlab.imitation.data import dataset as dataset_lib


def ending(linear):
    from_conftest = linear[3]
    rows = np.ones(len(from_conftest.obs), bool)
    terminated, truncated = from_conftest.terminated.copy(), from_conftest.truncated.copy()
    for i in range(0, 20, 2):
        begin = 25 * i
        last = begin + 10 + i % 7
        rows[last + 1 : begin + 25] = False
        terminated[last] = True
    changed = from_conftest._replace(terminated=terminated, truncated=truncated)
    return changed._replace(
        **{field: getattr(changed, field)[rows] for field in dataset_lib.ARRAYS}
    )


@pytest.fixture(scope="module")
def logs(linear):
    """Twenty episodes of a linear system, every second of them ending early by a termination."""
    return ending(linear)


def equal(one, two, *, but=()):
    for field in (*dataset_lib.ARRAYS, "action_low", "action_high"):
        if field not in but:
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field), err_msg=field)


def test_files_keep_everything(logs, tmp_path):
    np.savez_compressed(tmp_path / "logs.npz", **imitation.to_npz(logs))
    read = imitation.read_npz(tmp_path / "logs.npz")
    equal(read, logs)
    assert read.about == logs.about and read.obs.dtype == np.float32
    assert imitation.fingerprint(read) == imitation.fingerprint(logs)
    np.savez_compressed(tmp_path / "half.npz", **imitation.to_npz(logs, half=True))
    half = imitation.read_npz(tmp_path / "half.npz")
    np.testing.assert_array_equal(half.obs, logs.obs.astype(np.float16).astype(np.float32))
    assert imitation.fingerprint(half) != imitation.fingerprint(logs)
    with pytest.raises(ValueError, match="about must hold what JSON does"):
        imitation.to_npz(logs._replace(about={"return": np.float32(1.0)}))
    changed = logs.reward.copy()
    changed[3] += 1.0
    assert imitation.fingerprint(logs._replace(reward=changed)) != imitation.fingerprint(logs)


def test_d4rl_without_next_observations(logs):
    """The rows that a cut episode ends with have no successor; terminations keep theirs open."""
    arrays = {
        "observations": logs.obs,
        "actions": logs.action,
        "rewards": logs.reward,
        "terminals": logs.terminated.astype(np.float64),
        "timeouts": logs.truncated,
    }
    found = imitation.from_d4rl(arrays, action_low=-10.0, action_high=10.0)
    want_obs, want_next, cut = [], [], []
    for i in range(20):
        rows = logs.episode_id == i
        obs, ended = logs.obs[rows], logs.terminated[rows].any()
        want_obs.append(obs if ended else obs[:-1])
        want_next.append(np.concatenate([obs[1:], np.full((1, 3), np.nan)]) if ended else obs[1:])
        cut += [False] * (len(want_obs[-1]) - 1) + [not ended]
    np.testing.assert_array_equal(found.obs, np.concatenate(want_obs))
    np.testing.assert_array_equal(found.next_obs, np.concatenate(want_next))
    np.testing.assert_array_equal(found.truncated, cut)
    assert found.terminated.sum() == 10 and len(dataset_lib.starts(found)) == 20
    whole = imitation.from_d4rl(
        {**arrays, "next_observations": logs.next_obs}, action_low=-10.0, action_high=10.0
    )
    equal(whole, logs)


def test_minari_s_episodes(logs):
    """As records, as dicts; one observation more than actions."""
    episodes = []
    for i in range(20):
        rows = logs.episode_id == i
        episodes.append(
            {
                "observations": np.concatenate([logs.obs[rows], logs.next_obs[rows][-1:]]),
                "actions": logs.action[rows],
                "rewards": logs.reward[rows].astype(np.float64),
                "terminations": logs.terminated[rows],
                "truncations": logs.truncated[rows],
            }
        )
    for given in (episodes, [types.SimpleNamespace(**x) for x in episodes]):
        found = imitation.from_minari(
            given, action_low=[-10.0, -10.0], action_high=10.0, about={"env": "linear_gaussian"}
        )
        equal(found, logs)
    with pytest.raises(ValueError, match="episode 1 must have one observation more than actions"):
        imitation.from_minari([episodes[0], {**episodes[1], "actions": logs.action[:3]}])
    with pytest.raises(ValueError, match="episode 0 has no truncations; Minari's have"):
        imitation.from_minari([{k: v for k, v in episodes[0].items() if k != "truncations"}])
    with pytest.raises(ValueError, match="must be one array, got a dict of"):
        imitation.from_minari([{**episodes[0], "observations": {"a": 1}}])
    with pytest.raises(ValueError, match="at least one, got none"):
        imitation.from_minari([])


def test_one_s_own_file_needs_little(logs, tmp_path):
    """Observations, actions and episodes; the bounds of actions are -1 and 1."""
    path = tmp_path / "own.npz"
    given = {"obs": logs.obs, "action": logs.action / 10.0, "episode_id": logs.episode_id}
    np.savez(path, **given)
    found = imitation.read_npz(path)
    assert not found.terminated.any() and found.truncated.sum() == 20
    assert len(found.obs) == len(logs.obs) - 20 and np.isnan(found.reward).all()
    np.testing.assert_array_equal(found.action_low, [-1.0, -1.0])
    np.testing.assert_array_equal(found.next_obs[:5], logs.obs[1:6])
    demos = imitation.prepare(found)
    assert demos.logs is None and demos.expert.obs.shape == (len(found.obs), 4)


def test_time_limits_that_are_called_terminations(linear, tmp_path):
    """Found with and without a header that says the limit; what to do is said, and does it."""
    expert = linear[2]
    wrong = expert._replace(terminated=expert.truncated, truncated=np.zeros(200, bool))
    for about in ({"time_limit": 25}, {}):
        with pytest.raises(ValueError, match="got 8 of 8 episodes that end so after exactly 25"):
            imitation.check_dataset(wrong._replace(about=about))
    arrays = {field: getattr(wrong, field) for field in dataset_lib.ARRAYS}
    np.savez(tmp_path / "wrong.npz", **arrays)
    given = {"action_low": -10.0, "action_high": 10.0}
    with pytest.raises(ValueError, match=r"time_limit=25 of the loader"):
        imitation.read_npz(tmp_path / "wrong.npz", **given)
    read = imitation.read_npz(tmp_path / "wrong.npz", time_limit=25, **given)
    equal(read, expert)
    real = imitation.read_npz(tmp_path / "wrong.npz", time_limit=math.inf, **given)
    equal(real, wrong)
    with pytest.raises(ValueError, match="must end within time_limit, got one of 25 steps and 20"):
        imitation.read_npz(tmp_path / "wrong.npz", time_limit=20, **given)
    # Flags of both kinds, as wrappers set them; without next observations, as D4RL's files are.
    both = {**arrays, "truncated": expert.truncated}
    del arrays["next_obs"]
    for name, stored in (("both", both), ("short", arrays)):
        np.savez(tmp_path / f"{name}.npz", **stored)
        with pytest.raises(ValueError, match="got 8 of 8 episodes that end so after exactly 25"):
            imitation.read_npz(tmp_path / f"{name}.npz", **given)
    equal(imitation.read_npz(tmp_path / "both.npz", time_limit=25, **given), expert)
    short = imitation.read_npz(tmp_path / "short.npz", time_limit=25, **given)
    assert len(short.obs) == 8 * 24 and short.truncated.sum() == 8 and not short.terminated.any()
    np.testing.assert_array_equal(short.next_obs[:24], expert.obs[1:25])
    # Of one demonstration the logs tell; that there is no limit can be said.
    alone = imitation.take_episodes(wrong, [2])._replace(about={})
    logs = linear[3]._replace(about={})
    imitation.check_dataset(alone)
    for pair in ((alone, logs), (alone, logs._replace(about={"time_limit": 25}))):
        with pytest.raises(ValueError, match="^expert: terminated .* 1 of 1 .* of logs are cut"):
            imitation.prepare(*pair)
    with pytest.raises(ValueError, match="^logs: terminated .* 1 of 1 .* of expert are cut"):
        imitation.prepare(
            expert._replace(about={}), alone._replace(episode_id=0 * alone.episode_id)
        )
    imitation.prepare(alone._replace(about={"time_limit": math.inf}), logs)
    # One termination after as many steps as the longest cut episode is no pattern.
    one = expert._replace(
        terminated=np.arange(200) == 24,
        truncated=expert.truncated & (np.arange(200) != 24),
        about={},
    )
    imitation.check_dataset(one)


def test_unsound_data_are_refused_in_one_line(logs, tmp_path):
    nan = logs.obs.copy()
    nan[7, 1] = np.nan
    far = logs.action.copy()
    far[4] = 11.0
    apart = logs.episode_id.copy()
    apart[-1] = 0
    early = logs.terminated.copy()
    early[2] = True
    one = imitation.take_episodes(logs, [0])
    single = one._replace(**{field: getattr(one, field)[:1] for field in dataset_lib.ARRAYS})
    for bad, message in (
        (logs._replace(obs=nan), "obs must be finite, got NaN or an infinity in 1 rows, .* row 7"),
        (logs._replace(next_obs=nan), "next_obs must be finite"),
        (logs._replace(action=far), r"actions must lie in .* got \[11.0, 11.0\] in row 4"),
        (logs._replace(episode_id=apart), "must stand together, got episode 0 in several"),
        (logs._replace(terminated=early), "must end with its last row, got an end in row 2"),
        (single, "must have at least 2 transitions, got 1"),
        (logs._replace(obs=logs.obs[:, :2]), "next_obs must have the shape of obs"),
        (logs._replace(reward=logs.reward[:3]), "reward must be"),
        (logs._replace(action_low=logs.action_high), "low below high"),
        (logs._replace(action_high=logs.action_high + np.inf), "2 finite numbers each"),
        (logs._replace(terminated=logs.reward), "terminated must be an array of booleans, got flo"),
        (logs._replace(obs=logs.obs.tolist()), "obs must be an array of floats, got list"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            imitation.prepare(bad)
        assert "\n" not in str(error.value) and str(error.value)[-1] != "."

    for arrays, message in (
        ({"obs": logs.obs}, "has no action, got obs"),
        ({"obs": logs.obs, "action": logs.action}, "got neither episode_id nor terminated"),
        ({**arrays_of(logs), "action": logs.episode_id}, "choices are not taken"),
        ({**arrays_of(logs), "obs": logs.obs.astype(str)}, "obs must be of numbers"),
        ({**arrays_of(logs), "action": logs.action[:-1]}, "action must have .* rows like obs"),
        ({**arrays_of(logs), "terminated": logs.reward}, "terminated must be 0 or 1"),
        ({**arrays_of(logs), "header": "no JSON"}, "header must be a JSON text"),
        ({**arrays_of(logs), "header": json.dumps({"format": 9})}, "header must say format 1"),
        ({**arrays_of(logs), "header": header(time_limit="no")}, "time_limit must be a number"),
        ({**arrays_of(logs), "header": header(action_low={})}, "action_low and action_high must"),
        ({**arrays_of(logs), "observations": logs.obs}, "one of obs and observations, got both"),
        ({**arrays_of(logs), "obs": 1j * logs.obs}, "obs must be of numbers, got complex64"),
        ({**arrays_of(logs), "obs": 1.0}, "obs must have"),
        ({x: y[:0] for x, y in arrays_of(logs).items()}, "at least 2 transitions, got 0"),
        (arrays_of(logs), "actions must lie in .*; give action_low and action_high"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            imitation.read_npz(tmp_path / "bad.npz")
    # Ids that differ do not fall together when they are rounded.
    for ids in (logs.episode_id / 4.0, logs.episode_id.astype(np.int64) << 32, nan[:, 1]):
        np.savez(tmp_path / "bad.npz", **{**arrays_of(logs), "episode_id": ids})
        with pytest.raises(ValueError, match="episode_id must be integers of 32 bits"):
            imitation.read_npz(tmp_path / "bad.npz", action_low=-10.0, action_high=10.0)
    np.save(tmp_path / "one.npy", logs.obs)
    for path, message in ((tmp_path / "one.npy", "is no npz file"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=message):
            imitation.read_npz(path)
    np.savez(tmp_path / "bad.npz", **arrays_of(logs))
    with pytest.raises(ValueError, match="time_limit must be a number of steps .* got 'long'"):
        imitation.read_npz(tmp_path / "bad.npz", time_limit="long")
    (tmp_path / "text.npz").write_text("obs,action\n")
    np.savez(tmp_path / "objects.npz", obs=np.asarray([None, {}], object))
    for name, message in (("text.npz", "is no npz file"), ("objects.npz", "plain arrays")):
        with pytest.raises(ValueError, match=message):
            imitation.read_npz(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        imitation.read_npz(tmp_path / "nowhere.npz")


def header(**others):
    return json.dumps({"format": 1, **others})


def arrays_of(dataset):
    return {field: getattr(dataset, field) for field in dataset_lib.ARRAYS}


def test_other_dynamics_and_leaks_are_refused(linear, logs):
    expert = linear[2]
    for other, message in (
        (
            imitation.join([logs])._replace(about={"env": "hopper"}),
            "same env, got 'linear_gaussian' and",
        ),
        (logs._replace(action_high=logs.action_high * 2.0), "must have the same action_high"),
        (
            logs._replace(obs=logs.obs[:, :2], next_obs=logs.next_obs[:, :2]),
            "observations of 3 and 2",
        ),
        (
            logs._replace(
                action=logs.action[:, :1],
                action_low=logs.action_low[:1],
                action_high=logs.action_high[:1],
            ),
            "actions of 2 and 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            imitation.prepare(expert, other)
    mixed = imitation.join([logs, imitation.take_episodes(expert, [2, 5])])
    assert imitation.leaking_episodes(expert, mixed) == {2: 20, 5: 21}
    with pytest.raises(ValueError, match="got 2 of them there, as episode 2 in episode 20"):
        imitation.prepare(expert, mixed)
    # Also after a trip through half precision, of a part of an episode, and of rows out of order.
    half = [x.astype(np.float16).astype(np.float32) for x in (mixed.obs, mixed.action)]
    rough = mixed._replace(obs=half[0], action=half[1])
    assert imitation.leaking_episodes(expert, rough) == {2: 20, 5: 21}
    part = expert._replace(**{f: getattr(expert, f)[:13] for f in dataset_lib.ARRAYS})
    assert imitation.leaking_episodes(expert, part) == {0: 0}
    few = expert._replace(**{f: getattr(expert, f)[:12] for f in dataset_lib.ARRAYS})
    assert imitation.leaking_episodes(expert, few) == {}
    # A start that all share is no leak.
    still = logs.obs.copy()
    still[:3], same = expert.obs[:3], logs.action.copy()
    same[:3] = expert.action[:3]
    assert imitation.leaking_episodes(expert, logs._replace(obs=still, action=same)) == {}


def test_episodes_split_and_join_whole(logs):
    first, rest = imitation.split_episodes(3, logs, 6)
    ids = [set(x.episode_id.tolist()) for x in (first, rest)]
    assert len(ids[0]) == 6 and ids[0] | ids[1] == set(range(20)) and not ids[0] & ids[1]
    assert imitation.leaking_episodes(first, rest) == {}
    joined = imitation.join([first, rest])
    np.testing.assert_array_equal(np.unique(joined.episode_id), np.arange(20))
    np.testing.assert_array_equal(joined.obs, np.concatenate([first.obs, rest.obs]))
    want = [logs.reward[logs.episode_id == i].sum() for i in range(20)]
    np.testing.assert_allclose(imitation.returns(logs), want, rtol=1e-5)
    for bad in (0, 20, 2.5):
        with pytest.raises(ValueError, match="num_first must lie in 1 to 19"):
            imitation.split_episodes(0, logs, bad)
    with pytest.raises(ValueError, match="got 99"):
        imitation.take_episodes(logs, [0, 99])


def test_normalization_by_hand(linear, logs):
    expert = linear[2]
    still = expert._replace(
        obs=np.concatenate([expert.obs, np.full((200, 1), 7.0, np.float32)], axis=1),
        next_obs=np.concatenate([expert.next_obs, np.full((200, 1), 7.0, np.float32)], axis=1),
    )
    demos = imitation.prepare(still)
    scale = np.minimum(1.0 / (still.obs.astype(np.float64).std(axis=0) + 1e-3), 10.0)
    assert scale[3] == 10.0
    want = (still.obs - still.obs.astype(np.float64).mean(axis=0)) * scale
    np.testing.assert_allclose(demos.expert.obs[:, :4], want, atol=1e-4)
    np.testing.assert_array_equal(demos.expert.obs[:, 4], 0.0)
    np.testing.assert_allclose(demos.expert.action, expert.action / 10.0, atol=1e-6)
    np.testing.assert_array_equal(demos.first_obs, demos.expert.obs[::25])
    seen = imitation.observe(demos.normalizer, np.asarray(still.obs))
    np.testing.assert_allclose(seen, demos.expert.obs, atol=1e-5)

    both = imitation.prepare(expert, logs, norm_from="union")
    union = np.concatenate([expert.obs, logs.obs]).astype(np.float64)
    np.testing.assert_allclose(both.normalizer.shift, -union.mean(axis=0), atol=1e-5)
    own = imitation.prepare(expert, logs)
    assert np.abs(own.normalizer.shift - both.normalizer.shift).max() > 1e-3
    again = imitation.prepare(expert, logs, normalizer=both.normalizer)
    np.testing.assert_array_equal(again.logs.obs, both.logs.obs)
    assert again.fingerprint == both.fingerprint != own.fingerprint
    for options, message in (
        ({"norm_from": "logs"}, "norm_from must be expert or union"),
        ({"max_scale": 0.0}, "max_scale must be positive"),
        ({"normalizer": demos.normalizer}, "normalizer must be of 3 numbers"),
        (
            {"normalizer": own.normalizer._replace(scale=0.0 * own.normalizer.scale)},
            "normalizer must be finite and its scale positive",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            imitation.prepare(expert, **options)


def test_absorbing_states_by_hand(linear, logs):
    expert = ending_expert(linear)
    demos = imitation.prepare(expert, logs)
    state = [0.0, 0.0, 0.0, 1.0]
    for data, raw, most in ((demos.expert, expert, 1), (demos.logs, logs, 10)):
        at = 0
        for episode in np.unique(raw.episode_id):
            rows = np.flatnonzero(raw.episode_id == episode)
            length = len(rows)
            own = np.asarray(data.obs[at : at + length])
            want = (raw.obs[rows] + demos.normalizer.shift) * demos.normalizer.scale
            np.testing.assert_allclose(own[:, :3], want, atol=1e-5)
            np.testing.assert_array_equal(own[:, 3], 0.0)
            last = np.asarray(data.next_obs[at + length - 1])
            at += length
            if not raw.terminated[rows[-1]]:
                assert last[3] == 0.0
                continue
            np.testing.assert_array_equal(last, state)
            stay = min(most, 25 - length)  # no longer than an episode may be
            for t in range(at, at + stay):
                np.testing.assert_array_equal(data.obs[t], state)
                np.testing.assert_array_equal(data.next_obs[t], state)
                assert data.episode[t] == episode
            moves = np.asarray(data.action[at : at + stay])
            assert np.all(moves == 0.0) if most == 1 else 0.3 < moves.std() < 0.9
            at += stay
        assert at == len(data.obs) and not data.terminated.any()
    joined = imitation.union(demos)
    assert len(joined.obs) == len(demos.expert.obs) + len(demos.logs.obs)
    assert len(np.unique(joined.episode)) == 28

    plain = imitation.prepare(expert, logs, absorbing=False)
    np.testing.assert_array_equal(plain.logs.terminated, logs.terminated)
    assert len(plain.expert.obs) == len(expert.obs) and not plain.expert.obs[:, 3].any()
    unknown = logs.next_obs.copy()
    unknown[logs.terminated] = np.nan
    open_ended = logs._replace(next_obs=unknown)
    again = imitation.prepare(expert, open_ended)
    np.testing.assert_array_equal(again.logs.next_obs, demos.logs.next_obs)
    with pytest.raises(ValueError, match="next_obs of a termination is unknown; use absorbing"):
        imitation.prepare(expert, open_ended, absorbing=False)


def ending_expert(linear):
    """The expert with its first episode ending by a termination after nine steps."""
    expert = linear[2]
    rows = (np.arange(200) < 9) | (np.arange(200) >= 25)
    changed = expert._replace(terminated=np.arange(200) == 8)
    return changed._replace(
        **{field: getattr(changed, field)[rows] for field in dataset_lib.ARRAYS}
    )


def test_absorbing_steps_end_with_time(linear):
    """An episode of 9 steps that may take 12 stays for 3 more."""
    expert = linear[2]._replace(about={"time_limit": 12})
    logs = ending_expert(linear)
    logs = logs._replace(**{f: getattr(logs, f)[:9] for f in dataset_lib.ARRAYS})
    demos = imitation.prepare(
        imitation.take_episodes(expert, [3]), logs._replace(about={"time_limit": 12})
    )
    assert len(demos.logs.obs) == 12
