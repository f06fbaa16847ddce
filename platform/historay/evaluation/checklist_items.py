"""The items of TRIPOD+AI and CLAIM 2024, their subjects in our own words, and which facts of a report answer them.

TRIPOD+AI: Collins et al., BMJ 2024;385:e078378, 27 items in 52 parts. CLAIM: Tejani et al., Radiology: Artificial
Intelligence 2024;6(4):e240300, 44 items. The wording of the guidelines is not copied: read the item there.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """One item of a guideline."""

    number: str
    subject: str
    answer: str = ""  # with {phrase} of checklist.phrases; empty: the platform cannot know
    left: str = ""  # what the authors have to add to that answer


TRIPOD_AI = (
    Item("1", "title: that a prediction model is developed or evaluated, for whom and for what outcome"),
    Item("2", "abstract, by the list for abstracts"),
    Item("3a", "background: the medical question and earlier models"),
    Item("3b", "background: target population, purpose, place in care, users"),
    Item("3c", "background: known health inequalities"),
    Item("4", "objectives: development, evaluation or both"),
    Item(
        "5a", "data: sources, and how well they represent the target population", "{data}.", "sources and whom they represent"
    ),
    Item("5b", "data: dates of collection"),
    Item("6a", "participants: setting, number and place of centres", "{sites}.", "setting and places"),
    Item("6b", "participants: eligibility", "{quarantine}.", "criteria for patients and slides"),
    Item("6c", "participants: treatments received"),
    Item(
        "7", "data preparation and quality checks", "{preprocessing}. {quarantine}.", "what was done before the tiles were cut"
    ),
    Item("8a", "outcome: definition, how and when assessed", "{classes}.", "definition and assessment of each class"),
    Item("8b", "outcome: who assessed it, where judgement is needed"),
    Item("8c", "outcome: blinding of its assessment"),
    Item("9a", "predictors: choice", "{inputs}."),
    Item("9b", "predictors: definition and measurement", "{inputs}.", "staining, scanner and its settings"),
    Item("9c", "predictors: who assessed them, where judgement is needed"),
    Item("10", "sample size, and why", "{splits}.", "how the size was arrived at"),
    Item("11", "missing data", "{quarantine}.", "tiles, slides and patients that were missing before ingest"),
    Item("12a", "analysis: how data were used for development and evaluation", "{splits}. {disjoint}. {leaks}."),
    Item("12b", "analysis: handling of predictors", "{preprocessing}. {augmentation}."),
    Item(
        "12c",
        "analysis: type of model, building steps, tuning, internal validation",
        "{model}. {training}. {selection}. {calibration}.",
    ),
    Item("12d", "analysis: heterogeneity between clusters", "{subgroups}."),
    Item("12e", "analysis: measures and plots of performance", "{measures}. {intervals}. {shortcuts}."),
    Item("12f", "analysis: updating of the model after its evaluation"),
    Item("12g", "analysis: how predictions are calculated in evaluation", "{bundle}."),
    Item("13", "class imbalance: methods, and recalibration after them", "{class_weights}. {train_classes}. {calibration}."),
    # Site and scanner are no groups of society, and the platform knows no age, sex or origin.
    Item("14", "fairness: approaches, and why"),
    Item("15", "output of the model, and thresholds", "{output}. {threshold}."),
    Item("16", "differences between development and evaluation data", "{same_source}.", "differences in care and in patients"),
    Item("17", "ethics approval and consent"),
    Item("18a", "funding, and the funders' part"),
    Item("18b", "conflicts of interest"),
    Item("18c", "protocol: where it is"),
    Item("18d", "registration"),
    Item("18e", "availability of data"),
    Item("18f", "availability of code", "{versions}.", "where the code of the study is"),
    Item("19", "involvement of patients and public"),
    Item("20a", "results: flow of participants, with and without the outcome", "{quarantine}. {splits}. {test_classes}."),
    Item("20b", "results: characteristics of participants", "{sites}.", "age, sex, disease and further characteristics"),
    Item(
        "20c",
        "results: development against evaluation data",
        "{splits}. {same_source}.",
        "distributions of patient characteristics",
    ),
    Item("21", "results: participants and outcomes in each analysis", "{splits}. {train_classes}. {test_classes}."),
    Item("22", "results: the full model, for use by others", "{model}. {bundle}.", "where it can be had, and on what terms"),
    Item("23a", "results: performance with intervals, also in subgroups", "{results}. {subgroups}."),
    Item("23b", "results: heterogeneity of performance between clusters", "{heterogeneity}."),
    Item("24", "results: updating of the model after its evaluation"),
    Item("25", "discussion: interpretation, with fairness and earlier studies"),
    Item("26", "discussion: limitations", "{limitations}. {disclaimer}", "limitations that figures do not show"),
    Item("27a", "usability: poor or missing input", "{input_checks}.", "what is done in practice where no answer is given"),
    Item("27b", "usability: what users do, and the skill it takes"),
    Item("27c", "usability: next steps, applicability and generalisability"),
)

CLAIM = (
    Item("1", "title or abstract names the AI methodology"),
    Item("2", "structured abstract"),
    Item("3", "background, intended use and role"),
    Item("4", "aims, objectives and hypotheses"),
    Item("5", "prospective or retrospective"),
    Item("6", "goal of the study"),
    Item("7", "data sources", "{data}.", "where the images come from"),
    Item("8", "inclusion and exclusion", "{quarantine}.", "criteria for patients and slides"),
    Item("9", "data preprocessing", "{preprocessing}.", "what was done before the tiles were cut"),
    Item("10", "selection of data subsets", "{num_evaluated}.", "how tiles were taken from slides"),
    Item("11", "de-identification"),
    Item("12", "missing data", "{quarantine}.", "tiles, slides and patients that were missing before ingest"),
    Item("13", "image acquisition", "{acquisition}.", "staining, scanner and its settings"),
    # Site and scanner are no groups of society, and the platform knows no age, sex or origin.
    Item("14", "fairness: approaches, and why"),
    Item("15", "reference standard: why this one"),
    Item("16", "reference standard: who annotated"),
    Item("17", "annotation of the test set"),
    Item("18", "variability between and within annotators"),
    Item("19", "how data were assigned to partitions", "{split_rule}. {splits}."),
    Item("20", "level at which partitions are disjoint", "{disjoint}. {leaks}."),
    Item("21", "intended sample size of testing", "{test_classes}.", "how the size was arrived at"),
    Item("22", "model: inputs, layers, outputs", "{model}. {inputs}. {output}."),
    Item("23", "software with versions", "{versions}."),
    Item("24", "initial parameters", "{initialisation}."),
    Item("25", "training: augmentation, hyperparameters, number of models", "{augmentation}. {training}. {candidates}."),
    Item("26", "selection of the final model", "{selection}."),
    Item("27", "ensembling", "{ensembling}."),
    Item("28", "metrics of performance", "{measures}."),
    Item("29", "uncertainty and significance", "{intervals}."),
    Item("30", "robustness or sensitivity analysis", "{robustness}."),
    Item("31", "explanation or interpretation", "{explanation}."),
    Item("32", "evaluation on internal data", "{same_source}. {results}."),
    Item("33", "testing on external data"),
    Item("34", "registration of a clinical trial"),
    Item("35", "numbers included and excluded", "{quarantine}. {splits}."),
    Item("36", "demographic and clinical characteristics by partition"),
    Item("37", "performance with its uncertainty", "{results}. {intervals}."),
    Item("38", "diagnostic performance and its precision", "{results}. {threshold}."),
    Item("39", "analysis of failures", "{failures}."),
    Item("40", "limitations", "{limitations}. {disclaimer}", "limitations that figures do not show"),
    Item("41", "implications for practice"),
    Item("42", "protocol or further technical detail", "{bundle}.", "the protocol"),
    Item("43", "availability of software, model and data", "{versions}. {bundle}.", "where they can be had, and on what terms"),
    Item("44", "funding, and the funders' part"),
)
