"""The learning rate of an iteration, and what of the configuration reaches DeepSpeed."""

from __future__ import annotations

import pytest

from configs.learner import LearnerConfig
from learner.deepspeed_config import deepspeed_config, learning_rate


def rates(iterations=6, **settings):
    config = LearnerConfig(learning_rate=1.0, **settings)
    return [learning_rate(config, i, iterations) for i in range(iterations)]


def test_schedules_by_hand():
    assert rates() == [1.0] * 6
    assert rates(warmup=2)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates(warmup=2, schedule="linear")[2:] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(schedule="cosine")[3] == pytest.approx(0.5)
    assert learning_rate(LearnerConfig(schedule="cosine"), 6, 6) == pytest.approx(0)


def test_bfloat16_accumulates_in_float32_at_every_stage():
    for stage in (0, 1, 2, 3):
        config = deepspeed_config(LearnerConfig(zero_stage=stage), hidden_size=64, parameters=1000)
        assert config["data_types"] == {"grad_accum_dtype": "fp32"}
        assert config["zero_optimization"]["stage"] == max(stage, 1)
        assert config["gradient_accumulation_steps"] == 1


def test_offload_reaches_deepspeed():
    config = deepspeed_config(
        LearnerConfig(zero_stage=3, offload=True, gpus=1), hidden_size=64, parameters=1000
    )
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
