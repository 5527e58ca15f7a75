# The budget under which tools/analysis_tools/compare.py compares necks on the scenes: a RetinaNet with half a ResNet-18.
_base_ = ['retinanet.py', 'scenes_det.py']

# What the diffs of this config are compared with; they inherit it.
reference = 'retinanet_fpn.py'

model = dict(
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        out_indices=(1, 2, 3),
        # What compare_necks/backbone.py has learned, with the first seed, so that all necks start from the same.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/compare_necks/backbone/seed0/epoch_10.pth', prefix='backbone.'
        ),
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=64, num_outs=3),
    bbox_head=dict(stacked_convs=1),
)

max_epochs = 4
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
