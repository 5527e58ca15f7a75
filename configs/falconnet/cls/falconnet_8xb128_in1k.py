_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# The paper's recipe is not known to us. This is the one that its first author published for a network of this size
# (SGD, 0.1 for a batch of 512, weight decay 4e-5, 5 epochs of warm-up, cosine, 100 epochs, no label smoothing).
model = dict(
    backbone=dict(_delete_=True, type='mmext.FalconNet', out_indices=(3,), head_channels=1280),
    head=dict(in_channels=1280),
)

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)

optim_wrapper = dict(optimizer=dict(lr=0.2, weight_decay=4e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-6, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=1024)
