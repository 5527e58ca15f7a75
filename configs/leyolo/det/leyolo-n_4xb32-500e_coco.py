_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'

model = dict(
    _delete_=True,
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(type='mmext.LeYOLO', arch='nano'),
    neck=dict(type='mmext.LeYOLOFPAN', in_channels=[32, 64, 96], hidden_channels=[64, 128, 192]),
    bbox_head=dict(type='mmext.LeYOLODNiNHead', num_classes=80, in_channels=[32, 64, 96]),
    train_cfg=dict(assigner=dict(type='TaskAlignedAssigner', topk=10), alpha=0.5, beta=6),
    test_cfg=dict(nms_pre=30000, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.7), max_per_img=300),
)

# One picture at a time: the authors switch mosaic and mixup off.
train_pipeline = [
    dict(type='Resize', scale=_base_.img_scale, keep_ratio=True),
    dict(type='Pad', size=_base_.img_scale, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(
        type='RandomAffine',
        max_rotate_degree=0.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.5, 1.5),
        max_shear_degree=0.0,
    ),
    dict(type='YOLOXHSVRandomAug', hue_delta=3, saturation_delta=90, value_delta=50),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))

max_epochs = 500
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=3, by_epoch=True, convert_to_iter_based=True),
    dict(type='LinearLR', start_factor=1.0, end_factor=0.01, begin=0, end=max_epochs, by_epoch=True),
]
custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0001, update_buffers=True, priority=49)]
auto_scale_lr = dict(base_batch_size=128)
