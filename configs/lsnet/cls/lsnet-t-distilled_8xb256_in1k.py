_base_ = './lsnet-t_8xb256_in1k.py'

# The teacher is that of DeiT. Its weights come from timm at the first step.
model = dict(
    type='mmext.DistilledClassifier',
    model='ImageClassifier',
    teacher=dict(type='TimmClassifier', model_name='regnety_160.deit_in1k', pretrained=True),
    head=dict(distillation=True),
)
