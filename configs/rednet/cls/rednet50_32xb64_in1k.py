_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# The authors' recipe. The depth is an argument: 26, 38, 50, 101, 152.
model = dict(
    backbone=dict(_delete_=True, type='mmext.RedNet', arch=50, out_indices=(3,)),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, loss_weight=1.0)),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.8, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=3130),
    dict(type='CosineAnnealingLR', T_max=130, by_epoch=True, begin=0, end=130),
]
train_cfg = dict(max_epochs=130)
auto_scale_lr = dict(base_batch_size=2048)
