# What every run of a coordinate network has in common. The signal, the network and the schedule come from elsewhere.
default_scope = 'mmengine'
custom_hooks = [dict(type='mmext.SignalHook'), dict(type='mmext.SignalPictureHook')]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)

# Every step sees the whole signal; the data set is one item.
train_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=False))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='mmext.ReconstructionMetric')
test_evaluator = dict(type='mmext.ReconstructionMetric')
val_cfg = dict()
test_cfg = dict()
