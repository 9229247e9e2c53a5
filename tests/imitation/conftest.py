"""Small demonstrations that the tests of this room share."""

import numpy as np
import pytest

from jaxlab import envs, imitation


def linear_demos(*, action_std=0.1, num_expert=8, seed=0):
    """Episodes of a linear system under its best gain, logs under a worse one, and the gain."""
    system = imitation.random_system(seed, num_states=3, num_inputs=2)
    gain = envs.riccati(system)[0]
    expert, logs = (
        imitation.linear_episodes(
            i,
            system,
            imitation.LinearPolicy(share * gain, std),
            noise_std=0.3,
            num_episodes=num,
            num_steps=25,
            bound=10.0,
        )
        for i, share, std, num in ((1, 1.0, action_std, num_expert), (2, 0.9, 0.5, 20))
    )
    return system, gain, expert, logs


def ending(dataset, every=2):
    """The dataset with the last step of every second episode a termination, of several lengths."""
    rows = np.ones(len(dataset.obs), bool)
    terminated, truncated = dataset.terminated.copy(), dataset.truncated.copy()
    for i, begin in enumerate(range(0, len(rows), 25)):
        last = begin + 24
        if i % every == 0:
            last = begin + 10 + i % 7
            rows[last + 1 : begin + 25] = False
            terminated[last], truncated[begin + 24] = True, False
    arrays = dataset._replace(terminated=terminated, truncated=truncated)
    return dataset._replace(
        **{field: getattr(arrays, field)[rows] for field in imitation.data.dataset.ARRAYS}
    )


@pytest.fixture(scope="session")
def linear():
    """System, best gain, datasets of expert and logs."""
    return linear_demos()
