# Stage 3 with SA-GD: now and then a step uphill instead of a step down.
_base_ = 'retinanet_falconnet_sepc_scenes.py'

optim_wrapper = dict(
    _delete_=True,
    type='mmext.SAGDOptimWrapper',
    optimizer=dict(
        type='mmext.SAGD', lr=0.02, momentum=0.9, weight_decay=1e-4, sigma=1.0, max_ascent_prob=0.05, seed=0
    ),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, T_max=14, convert_to_iter_based=True),
]
