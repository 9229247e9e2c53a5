"""Small demonstrations that the tests of this room share."""

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


@pytest.fixture(scope="session")
def linear():
    """System, best gain, datasets of expert and logs."""
    return linear_demos()
