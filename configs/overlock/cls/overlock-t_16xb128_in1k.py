_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The authors' recipe but their augmentations. The variant is an argument.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.OverLoCK',
        arch='T',
        dense=False,
        return_overview=True,
        head_channels=1024,
        out_indices=(3,),
        drop_path_rate=0.15,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='mmext.DeepSupervisionClsHead',
        head='LinearClsHead',
        in_channels=1024,
        companions=[dict(in_index=0, in_channels=512, weight=0.4)],
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(_delete_=True, max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
auto_scale_lr = dict(base_batch_size=2048)
