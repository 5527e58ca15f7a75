# LeYOLO nano from scratch: backbone, neck and head on their own assigner and losses.
_base_ = ['../_base_/retinanet.py', '../_base_/scenes_det.py']

model = dict(
    _delete_=True,
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(type='mmext.LeYOLO', arch='nano'),
    neck=dict(type='mmext.LeYOLOFPAN', in_channels=[32, 64, 96], hidden_channels=[64, 128, 192]),
    bbox_head=dict(
        type='mmext.LeYOLODNiNHead', num_classes=10, in_channels=[32, 64, 96], image_size=128, times_batch=False
    ),
    train_cfg=dict(assigner=dict(type='TaskAlignedAssigner', topk=10), alpha=0.5, beta=6),
    test_cfg=dict(nms_pre=300, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=50),
)
