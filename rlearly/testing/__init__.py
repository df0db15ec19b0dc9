"""The contracts of agents, envs, interventions and selection rules, for your own tests.

A contract is a class whose tests pytest runs: subclass it in a test file, with a name that begins
with Test. Or call `check_agent`, `check_env`, ..., which check all laws at once. Our own agents are
checked by the same laws.
"""

from rlearly.testing.agents import AGENT_LAWS as AGENT_LAWS
from rlearly.testing.agents import AgentContract as AgentContract
from rlearly.testing.agents import AgentSubject as AgentSubject
from rlearly.testing.agents import check_agent as check_agent
from rlearly.testing.envs import ENV_LAWS as ENV_LAWS
from rlearly.testing.envs import EnvContract as EnvContract
from rlearly.testing.envs import check_env as check_env
from rlearly.testing.interventions import INTERVENTION_LAWS as INTERVENTION_LAWS
from rlearly.testing.interventions import InterventionContract as InterventionContract
from rlearly.testing.interventions import check_intervention as check_intervention
from rlearly.testing.laws import LawBroken as LawBroken
from rlearly.testing.selection import SELECTION_LAWS as SELECTION_LAWS
from rlearly.testing.selection import SelectionContract as SelectionContract
from rlearly.testing.selection import check_selection as check_selection
