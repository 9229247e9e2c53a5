"""What every reinforcement learner is made of: replay, returns, normalization, evaluation, PPO."""
