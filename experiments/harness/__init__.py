"""What every study stands on: records of results, units of work, verdicts, the report."""
