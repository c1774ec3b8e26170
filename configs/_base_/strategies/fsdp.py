# Parameters, gradients and optimiser states sharded over the GPUs, each transformer block a unit.  Add this file to a
# config's _base_, and train in bfloat16: optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', use_fsdp=True).
# Needs GPUs.  docs/training.md says what of it has never run.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        sharding_strategy='FULL_SHARD',
        auto_wrap_policy='wrap_transformer_blocks',
        use_orig_params=True),  # frozen and trained parameters, and rates of their own, inside one unit
    state_dict_cfg='full')  # checkpoints as of a single GPU
