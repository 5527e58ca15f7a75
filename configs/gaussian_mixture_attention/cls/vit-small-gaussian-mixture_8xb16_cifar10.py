# The paper's network for images of 32 x 32: nine layers of width 192, patches of 4.
_base_ = ['mmpretrain::_base_/datasets/cifar10_bs16.py', 'mmpretrain::_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmext.swap_layers',
        model='VisionTransformer',
        arch=dict(embed_dims=192, num_layers=9, num_heads=12, feedforward_channels=384),
        img_size=32,
        patch_size=4,
        qkv_bias=False,
        with_cls_token=False,
        out_type='avg_featmap',
        final_norm=False,
        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GaussianMixtureAttention'))],
    ),
    neck=None,
    head=dict(type='LinearClsHead', num_classes=10, in_channels=192, loss=dict(type='CrossEntropyLoss')),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=10, end=100),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
