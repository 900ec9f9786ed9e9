"""Lets a helper's failed `assert` tell what it compared, as a test's does."""

import pytest

# Pytest does that by itself in test files and conftests alone. This file is imported before them.
pytest.register_assert_rewrite("tests.integration", "tests.support", "tests.unit")
